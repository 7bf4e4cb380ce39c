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
            tokenizer.no_padding()
            tokenizer.no_truncation()
            highest = _highest_id(tokenizer)
            empty, probe = (encoding.ids for encoding in tokenizer.encode_batch(["", _PROBE]))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    # The library raises bare `Exception`, and where it panics a `BaseException`.
    except BaseException as error:
        raise CheckpointError(f"{path} is not a readable tokenizer; download it again") from error
    highest = max(highest, *empty, *probe)
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
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    todo: list[Any] = [json.loads(part.__getstate__()) for part in parts if part is not None]
    growth = 1
    while todo and growth <= _MAX_GROWTH:
        value = todo.pop()
        if isinstance(value, dict):
            match value.get("type"):
                case "Replace" | "Prepend":
                    text = value.get("content", value.get("prepend"))
                    growth *= 1 + (len(text) if isinstance(text, str) else 0)
                case "Precompiled":  # its table is bounded by the size of the file; a second isn't
                    growth *= 20
            value = list(value.values())
        if isinstance(value, list):
            todo += [item for item in value if isinstance(item, (dict, list))]
    return growth


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
