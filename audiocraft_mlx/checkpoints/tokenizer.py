"""`tokenizer.json`, checked before a prompt meets it: T5's tokenizer, from an untrusted file."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram

from audiocraft_mlx.checkpoints.model_files import ModelFiles
from audiocraft_mlx.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"

# Far above T5's: it adds one token to a prompt, and replaces spaces by one character.
_MAX_BYTES = 64 * 2**20
_MAX_GROWTH = 1000
_MAX_SPECIAL_TOKENS = 16
_MAX_TOKENS_PER_CHARACTER = 16
_PROBE = string.printable
# Of normalizers, pre-tokenizers and post-processors: T5's has a table of 0.4 MB, and 4 steps.
_MAX_STATE_BYTES = 4 * 2**20
_MAX_STEPS = 64
# The most characters that a step makes of one, as Unicode has them; for `Precompiled` its table, which is
# bounded by the size of the file.
_GROWTH_OF_STEPS = {
    "Precompiled": 20,
    "NFKC": 18,
    "NFKD": 18,
    "NFC": 4,
    "NFD": 4,
    "Lowercase": 3,
    "BertNormalizer": 36,
    "ByteLevel": 4,
}


def read_tokenizer(model_files: ModelFiles, vocab_size: int) -> Tokenizer:
    """The tokenizer of a text encoder with `vocab_size` embeddings, without padding and truncation.

    Raises `CheckpointError`, also for one whose tokens have no embedding, or that turns a short text into a
    long one.
    """
    path = model_files.local_path(TOKENIZER_FILE)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too long")
        with _silent_panics():
            tokenizer = Tokenizer.from_file(str(path))
            if _growth(tokenizer) > _MAX_GROWTH:
                raise ValueError("it makes long texts of short ones")
            for added in _added_tokens(tokenizer):
                if added > _MAX_SPECIAL_TOKENS:
                    raise CheckpointError(
                        f"{path} makes {added} tokens of no text; no text encoder's tokenizer does that"
                    )
            tokenizer.no_padding()
            tokenizer.no_truncation()
            highest = _highest_id(tokenizer)
            empty, probe = (encoding.ids for encoding in tokenizer.encode_batch(["", _PROBE]))
    except (KeyboardInterrupt, SystemExit, MemoryError, CheckpointError):
        raise
    # The library raises bare `Exception`, and where it panics a `BaseException`.
    except BaseException as error:
        raise CheckpointError(f"{path} is not a readable tokenizer; download it again") from error
    highest = max((highest, *empty, *probe))  # of a text may come none
    if highest >= vocab_size:
        raise CheckpointError(
            f"{path} doesn't fit the text encoder: it has token {highest}, that has {vocab_size} embeddings"
        )
    if not 1 <= len(empty) <= _MAX_SPECIAL_TOKENS or len(probe) > _MAX_TOKENS_PER_CHARACTER * len(_PROBE):
        raise CheckpointError(
            f"{path} makes {len(empty)} tokens of no text, and {len(probe)} of {len(_PROBE)} characters;"
            " no text encoder's tokenizer does that"
        )
    return tokenizer


def _highest_id(tokenizer: Tokenizer) -> int:
    """Of its vocabulary. What its post-processor adds isn't there."""
    if isinstance(tokenizer.model, Unigram):  # T5's: without gaps
        return int(tokenizer.get_vocab_size(with_added_tokens=True)) - 1
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)


def _growth(tokenizer: Tokenizer) -> int:
    """The most characters that its replacements and tables, one after the other, make of one."""
    growth = 1
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer):
        for step in _steps(part):
            growth *= _GROWTH_OF_STEPS.get(step["type"], 1)
            if step["type"] in ("Replace", "Prepend"):
                text = step.get("content", step.get("prepend"))
                growth *= 1 + (len(text) if isinstance(text, str) else 0)
    return growth


def _added_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """The most tokens that its post-processor adds to a text, and to a pair of them.

    Raises `ValueError` if a template has a text several times: one after the other, such templates double it
    each time.
    """
    to_text = to_pair = 0
    for step in _steps(tokenizer.post_processor):
        if step["type"] in ("BertProcessing", "RobertaProcessing"):
            to_text, to_pair = to_text + 2, to_pair + 4
        elif step["type"] == "TemplateProcessing":
            to_text += _added_by_template(step["single"], step["special_tokens"])
            to_pair += _added_by_template(step["pair"], step["special_tokens"])
    return to_text, to_pair


def _added_by_template(template: list[dict[str, Any]], special_tokens: dict[str, Any]) -> int:
    texts = [piece["Sequence"]["id"] for piece in template if "Sequence" in piece]
    if len(set(texts)) < len(texts):
        raise ValueError("a template repeats a text")
    lengths = {name: len(token["ids"]) for name, token in special_tokens.items()}
    return sum(lengths[piece["SpecialToken"]["id"]] for piece in template if "SpecialToken" in piece)


def _steps(part: Any) -> list[dict[str, Any]]:
    """What a normalizer, pre-tokenizer or post-processor does, also those in its sequences, in any order.

    Asked of the library, which has parsed the file, whose vocabulary isn't needed here. Raises `ValueError`
    for more than any text encoder has.
    """
    if part is None:
        return []
    state = part.__getstate__()
    if len(state) > _MAX_STATE_BYTES:
        raise ValueError("too long")
    todo, steps = [json.loads(state)], []
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if isinstance(value.get("type"), str):
                steps.append(value)
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    if len(steps) > _MAX_STEPS:
        raise ValueError("too many steps")
    return steps


@contextmanager
def _silent_panics() -> Iterator[None]:
    """Send what the library itself writes to standard error to nowhere: where it panics, a backtrace."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no standard error
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
