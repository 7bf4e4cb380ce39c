"""Codes and texts on disk: one file for each audio file and each caption, so that nothing is encoded twice.

The name of a file says what its content was made of. A file that isn't whole counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from audiocraft_mlx.files import remove_stale_parts, write_error, write_file
from audiocraft_mlx.networks.weights import flat_parameters

FORMAT_VERSION = 1
"""To be raised with each change of what is in a file, and of how codes and texts are made."""
# Values of each parameter that go into a network's digest: training changes all of them.
_VALUES = 64

Arrays = dict[str, np.ndarray]
_T = TypeVar("_T")


class Cache:
    """The folder `folder`, which is made if it isn't there. Raises `OutputError` if it can't be."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        remove_stale_parts(folder)
        self._folder = folder

    def read(self, kind: str, key: str, parse: Callable[[Arrays], _T]) -> _T | None:
        """What `parse` makes of the arrays of `key`; None if they aren't there, or it raises `ValueError`."""
        try:
            with np.load(self._path(kind, key), allow_pickle=False) as file:
                return parse({name: file[name] for name in file.files})
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError):
            return None

    def write(self, kind: str, key: str, arrays: Arrays) -> None:
        """Raises `OutputError`."""

        def save(stream: BinaryIO) -> None:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # its flag `allow_pickle` is none of the arrays

        write_file(self._path(kind, key), save)

    def _path(self, kind: str, key: str) -> Path:
        return self._folder / f"{kind}-{key}.npz"


def cache_key(*values: str | int | bool) -> str:
    """A name for what these values determine."""
    text = json.dumps([FORMAT_VERSION, *values])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def network_digest(*networks: nn.Module | mx.array) -> str:
    """Of the shapes of the parameters and of some of their values: another one after any training."""
    total = hashlib.sha256()
    for index, network in enumerate(networks):
        parameters = flat_parameters(network) if isinstance(network, nn.Module) else {"": network}
        for name, parameter in sorted(parameters.items()):
            total.update(f"{index}.{name}{parameter.shape}".encode())
            values = parameter.reshape(-1)[:: max(1, parameter.size // _VALUES)]
            if mx.issubdtype(parameter.dtype, mx.floating):
                values = values.astype(mx.float32)  # the codec's may be as they are in the file, or not
            total.update(np.asarray(values).tobytes())
    return total.hexdigest()
