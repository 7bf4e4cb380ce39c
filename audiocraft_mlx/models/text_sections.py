"""Sections of text → conditions of cross-attention that change."""

from __future__ import annotations

from collections.abc import Sequence

from audiocraft_mlx.conditioning.sections import FrameSection
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.decoding.sections import SectionConditions, TextChange


def encode_sections(
    conditioner: TextConditioner,
    sections: Sequence[Sequence[FrameSection]],
    negative: Sequence[str | None] | None,
) -> SectionConditions:
    """The conditions of rows with `sections`, of which guidance leads away from `negative` (None: no text).

    Each text is encoded once, however many sections have it.
    """
    negative = (None,) * len(sections) if negative is None else negative
    texts = dict.fromkeys(text or None for text in (*(s.text for row in sections for s in row), *negative))
    index = {text: i for i, text in enumerate(texts)}
    hidden, mask = conditioner.hidden_states([*texts])
    return SectionConditions(
        texts=hidden,
        # So a row and its null condition need no mask.
        lengths=tuple(int(row.sum()) if text else 0 for text, row in zip(texts, mask, strict=True)),
        first=tuple(index[row[0].text or None] for row in sections),
        unconditional=tuple(index[text or None] for text in negative),
        changes=tuple(
            tuple(TextChange(s.frame, index[s.text or None], s.fade) for s in row[1:]) for row in sections
        ),
    )
