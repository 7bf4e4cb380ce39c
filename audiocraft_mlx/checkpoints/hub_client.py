"""huggingface_hub under our own names: the only file that uses parts of it without a promise of stability.

`tests/test_hub_client.py` compares those parts with what is expected here; pyproject.toml has the versions.
The library takes a good part of a second to import, so each function imports what it needs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from audiocraft_mlx.errors import DownloadError, UsageError
from audiocraft_mlx.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_LIBRARY_NAME = "musicgen-mlx"
"""How requests name this program."""

# What an HTTP client reads from the environment when it is made.
_PROXIES = tuple(
    spelled for name in ("all_proxy", "https_proxy", "http_proxy") for spelled in (name.upper(), name)
)
_TIMEOUTS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_TOKENS = ("HF_OIDC_RESOURCE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


_USER_OF_URL = re.compile(r"(?<=://)[^\s'\"]*@|\b[^\s:/@'\"]+:[^\s/@'\"]+@")


@dataclass(frozen=True)
class FileMetadata:
    url: str
    etag: str
    """SHA-256 of a large file, git's SHA-1 of a small one."""
    size: int | None
    """Bytes, if the server tells."""


def check_environment() -> None:
    """Import the library, which reads its environment once. Raises `UsageError` for what it can't read."""
    fault = None
    try:
        # Parts of the library take it apart when they are imported.
        urlsplit(os.environ.get("HF_ENDPOINT", "")).port  # noqa: B018
    except ValueError:
        # Without its cause, whose text may have a part of a password.
        raise UsageError(_not_a_url(os.environ["HF_ENDPOINT"])) from None
    try:
        from huggingface_hub import constants

        wrong = [name for name in _TIMEOUTS if getattr(constants, name) < 0]
    except ValueError as error:  # the library itself converts the text, and says no more
        fault = error
        wrong = [name for name in _TIMEOUTS if not _is_integer(os.environ.get(name, "0"))]
        if not wrong:
            raise UsageError(f"an environment variable of huggingface_hub is wrong ({error})") from error
    for name in wrong:
        raise UsageError(
            f"{name} is {os.environ.get(name)!r}, not a number of seconds such as 30; correct or unset it"
        ) from fault


def _is_integer(text: str) -> bool:
    try:
        return int(text) >= 0
    except ValueError:
        return False


def forbid_downloads() -> None:
    """As if `HF_HUB_OFFLINE` were set, for the rest of the process."""
    check_environment()
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True


def is_repo_name(name: str) -> bool:
    """Whether a repository on the Hub may be called `name`."""
    check_environment()
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


def shown_endpoint() -> str:
    """`endpoint` for a message: without a name and password that it may have."""
    return _without_user(endpoint())


def without_secrets(text: str) -> str:
    """A message without the names and passwords of URLs, also of those in the environment in other forms."""
    for name in ("HF_ENDPOINT", *_PROXIES):
        user, found, _ = os.environ.get(name, "").partition("://")[2].rpartition("@")
        for secret in (user, user.partition(":")[2]) if found else ():
            if len(secret) > 2:
                text = text.replace(secret, "...")
    return _USER_OF_URL.sub("", text)


def _without_user(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


def _not_a_url(value: str) -> str:
    return (
        f"HF_ENDPOINT is {_without_user(value)!r}, not a URL such as https://huggingface.co;"
        " correct or unset it"
    )


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
    _check_connection()
    info = _api().model_info(repo, revision=revision, timeout=timeout)
    if info.sha is None or info.siblings is None:
        raise ValueError("no commit or no files")
    return info.sha, frozenset(sibling.rfilename for sibling in info.siblings)


def find_cached(repo: str, filename: str, commit: str) -> Path | None:
    """A file in the cache's snapshot of a commit; None if it isn't there."""
    path = _snapshot_path(repo, filename, commit)
    # Not `exists`, which in some versions of Python says no where permission is denied.
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return path


def _snapshot_path(repo: str, filename: str, commit: str) -> Path:
    """Where the cache has a file. Raises `ValueError` for a name that leads out of its folder."""
    if not {"", ".", ".."}.isdisjoint([commit, *filename.split("/")]) or "\\" in filename or "/" in commit:
        raise ValueError(f"an impossible name of a file, {filename[:100]!r}")
    return repo_folder(repo) / "snapshots" / commit / filename


def link_cached(repo: str, filename: str, commit: str, blob: Path) -> Path:
    """Link a file, whose content is in the cache's `blobs`, into the snapshot of a commit.

    (Not by `hf_hub_download`: that asks the server once more, and refuses one that doesn't give all headers.)
    """
    path = _snapshot_path(repo, filename, commit)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and not path.exists():  # to a blob that is gone
        path.unlink()
    try:
        os.symlink(os.path.relpath(blob, path.parent), path)
    except FileExistsError:
        pass  # another process was faster
    except OSError:
        os.replace(blob, path)  # a file system without links
    return path


def file_metadata(repo: str, filename: str, commit: str, timeout: float) -> FileMetadata:
    """One request for a file's size and checksum."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    _check_connection()
    url = hf_hub_url(repo, filename, revision=commit)
    metadata = get_hf_file_metadata(url, headers=_headers(), timeout=timeout)
    # It becomes the name of a file.
    if not metadata.etag or metadata.etag in (".", "..") or not {"/", "\\"}.isdisjoint(metadata.etag):
        raise ValueError("no usable ETag")
    return FileMetadata(url, metadata.etag, metadata.size)


def download(metadata: FileMetadata, file: BinaryIO, filename: str) -> None:
    """Append the rest of a file, from `file.tell()` on, over plain HTTP; a progress bar names `filename`."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    _check_connection()
    try:
        http_get(
            metadata.url,
            file,
            resume_size=file.tell(),
            headers=_headers(),
            expected_size=metadata.size,
            displayed_filename=filename,
        )
    except HfHubHTTPError as error:
        if metadata.size is not None or error.response.status_code != 416:
            raise
        # Of a file whose size the server doesn't tell: there are no more bytes.


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


def _check_connection() -> None:
    """Make the library's HTTP client, if there is none yet; offline nothing of the kind is even tried.

    Raises:
        OfflineModeIsEnabled: the user wants no network.
        DownloadError: the Hub's URL, a proxy or the certificates in the environment can't be used.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    if not _is_url(endpoint()):
        raise DownloadError(_not_a_url(endpoint()))
    _check_token()
    try:
        get_session()
    except ImportError as error:
        raise DownloadError(
            f"{_variables(_PROXIES, 'socks')} names a SOCKS proxy, which needs another package;"
            f" run `{sys.executable} -m pip install socksio`, or unset it"
        ) from error
    except OSError as error:
        raise DownloadError(_certificate_fault(error)) from error
    # Every kind of wrong proxy has an exception of its own, some of them plain `Exception`s.
    except Exception as error:
        raise DownloadError(
            f"{_variables(_PROXIES)} can't be used as a proxy ({without_secrets(str(error))});"
            " correct or unset it"
        ) from error


def token_source() -> str | None:
    """Where the token of requests comes from, an environment variable or a file; None without a token."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    for name in _TOKENS:
        if os.environ.get(name):
            return name
    return constants.HF_TOKEN_PATH if _token() else None


def is_bad_token(error: HfHubHTTPError) -> bool:
    """Whether the Hub refused a request for its token: even a public model, which needs none."""
    told = "credentials" in (error.server_message or "")
    return error.response.status_code == 401 and (told or token_source() is not None)


def _token() -> str | None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    try:
        return get_token()
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}"


def _check_token() -> None:
    """Refuse a token that no request can carry; not even its error may show it."""
    for character in _token() or "":
        if not "!" <= character <= "~" or character in "\"'":
            raise DownloadError(
                f"the token in {token_source()} has the character {character!r}, which can't be in a token;"
                " copy it again, or remove it: a public model needs none"
            )


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return False


def _variables(names: tuple[str, ...], prefix: str = "") -> str:
    """Which of these environment variables are set, to a value that begins with `prefix`.

    Their names only: a proxy's URL may hold a password.
    """
    values = {name: os.environ.get(name, "").lower() for name in names}
    found = [name for name, value in values.items() if value and value.startswith(prefix)]
    return " or ".join(found) or "the system's settings"


def _certificate_fault(error: OSError) -> str:
    import ssl

    reason = "no valid certificates" if isinstance(error, ssl.SSLError) else error.strerror or str(error)
    named = [(name, os.environ[name]) for name in _CERTIFICATES if os.environ.get(name)]
    unreadable = [(name, path) for name, path in named if not os.access(path, os.R_OK)]
    for name, path in unreadable or named:
        return f"{name} names {path}, which can't be used ({reason}); correct or unset it"
    return f"the certificates of this machine can't be used ({reason}); set SSL_CERT_FILE to a file of them"
