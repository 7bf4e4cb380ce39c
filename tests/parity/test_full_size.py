"""Equal to transformers in the shapes of musicgen-small and musicgen-stereo-small, with random weights."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from transformers import MusicgenDecoderConfig

from .pair import LONG_PROMPT, SHORT_PROMPT, Pair, build, encodec_32khz, t5_base


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def pair(
    request: pytest.FixtureRequest, goldens: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    theirs = build(
        t5_base(),
        MusicgenDecoderConfig(audio_channels=request.param, num_codebooks=4 * request.param),
        encodec_32khz(),
        seed=request.param,
    )
    folder = tmp_path_factory.mktemp("full-size")
    theirs.save_pretrained(folder)
    yield Pair(theirs, folder, goldens / "goldens" / "t5" / "tokenizer.json")
    # Free the memory and disk space for the other shape.
    del theirs
    gc.collect()
    mx.clear_cache()
    shutil.rmtree(folder)


def test_hidden_states(pair: Pair) -> None:
    pair.check_hidden_states([SHORT_PROMPT, LONG_PROMPT])


def test_logits(pair: Pair) -> None:
    pair.check_logits([SHORT_PROMPT, LONG_PROMPT], steps=6)


def test_twenty_guided_steps(pair: Pair) -> None:
    output = pair.check_greedy([LONG_PROMPT], frames=17, guidance=3)
    assert output.gap > 1e-3
    # Not the same code throughout, on which any two models might agree.
    assert len(np.unique(output.codes)) > 30


def test_a_padded_batch(pair: Pair) -> None:
    pair.check_greedy([SHORT_PROMPT, LONG_PROMPT], frames=8, guidance=3)


def test_codec(pair: Pair) -> None:
    pair.check_codec(samples=8 * 640 - 100, frames=6)
