"""huggingface_hub under our own names: the only file that uses parts of it without a promise of stability.

`tests/test_hub_client.py` compares those parts with what is expected here; pyproject.toml has the versions.
The library takes a good part of a second to import, so each function imports what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from audiocraft_mlx.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LIBRARY_NAME = "musicgen-mlx"
"""How requests name this program."""


@dataclass(frozen=True)
class FileMetadata:
    url: str
    etag: str
    """SHA-256 of a large file, git's SHA-1 of a small one."""
    size: int | None
    """Bytes, if the server tells."""


def is_repo_name(name: str) -> bool:
    """Whether a repository on the Hub may be called `name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def endpoint() -> str:
    """URL of the Hub, by `HF_ENDPOINT`."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def cache_folder() -> Path:
    """The cache that all programs share, by `HF_HOME` and `HF_HUB_CACHE`."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repo_folder(repo: str) -> Path:
    """A repository's folder in the cache: `blobs`, `refs` and `snapshots`."""
    from huggingface_hub.file_download import repo_folder_name

    return cache_folder() / repo_folder_name(repo_id=repo, repo_type="model")


def list_files(repo: str, revision: str, timeout: float) -> tuple[str, frozenset[str]]:
    """The commit of `revision` and its files: one request, no retries."""
    info = _api().model_info(repo, revision=revision, timeout=timeout)
    if info.sha is None or info.siblings is None:
        raise ValueError("no commit or no files")
    return info.sha, frozenset(sibling.rfilename for sibling in info.siblings)


def find_cached(repo: str, filename: str, commit: str) -> Path | None:
    """A file in the cache's snapshot of a commit; None if it isn't there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, filename, revision=commit)
    return Path(path) if isinstance(path, str) else None


def link_cached(repo: str, filename: str, commit: str) -> Path:
    """Link a file, whose content is in the cache's `blobs`, into the snapshot of a commit."""
    return Path(_api().hf_hub_download(repo, filename, revision=commit))


def file_metadata(repo: str, filename: str, commit: str, timeout: float) -> FileMetadata:
    """One request for a file's size and checksum."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, filename, revision=commit)
    metadata = get_hf_file_metadata(url, headers=_headers(), timeout=timeout)
    if metadata.etag is None:
        raise ValueError("no ETag")
    return FileMetadata(url, metadata.etag, metadata.size)


def download(metadata: FileMetadata, file: BinaryIO, filename: str) -> None:
    """Append the rest of a file, from `file.tell()` on, over plain HTTP; a progress bar names `filename`."""
    from huggingface_hub.file_download import http_get

    http_get(
        metadata.url,
        file,
        resume_size=file.tell(),
        headers=_headers(),
        expected_size=metadata.size,
        displayed_filename=filename,
    )


def file_lock(path: Path) -> AbstractContextManager[object]:
    """The lock that huggingface_hub itself takes while it downloads a file."""
    from huggingface_hub.utils import WeakFileLock

    return WeakFileLock(path)


def connection_error() -> type[Exception]:
    """The base of all HTTP errors: httpx's or httpx2's, whichever the library uses."""
    from huggingface_hub.errors import HTTPError

    return HTTPError


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's warnings, unless the user has set another level than its default."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    if verbosity == logging.WARNING:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(library_name=_LIBRARY_NAME, library_version=__version__)
    headers["Accept-Encoding"] = "identity"  # offsets count the bytes of the file, not of its compression
    return headers


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name=_LIBRARY_NAME, library_version=__version__)
