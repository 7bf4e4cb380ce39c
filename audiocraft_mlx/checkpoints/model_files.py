"""Turns a model's name into files: a short name, a Hugging Face Hub repository or a local folder.

Downloads go to the Hub's own cache, which other programs share, laid out as `huggingface_hub` does it.
Two things are done here because that library doesn't: an interrupted download is resumed by the next run,
and a file is compared with its checksum before it counts as downloaded.
"""

from __future__ import annotations

import errno
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError, UsageError

# huggingface_hub takes a good part of a second to import: only functions that need it do.
if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

SHORT_NAMES = {
    short: f"facebook/musicgen-{short}"
    for short in (
        "small",
        "medium",
        "large",
        "melody",
        "melody-large",
        "stereo-small",
        "stereo-medium",
        "stereo-large",
        "stereo-melody",
        "stereo-melody-large",
        "style",
    )
} | {"audiogen-medium": "facebook/audiogen-medium"}
_KNOWN = f"known short names: {', '.join(SHORT_NAMES)}, demo"

# The small model that is part of this package.
DEMO = "demo"
_DEMO_FOLDER = Path(__file__).parent.parent / DEMO
_INSTEAD = f"give a local folder, or use the model {DEMO!r}, which needs no download"

# Seconds to wait for the Hub's answer about a model or a file before doing without it.
_TIMEOUT = 10


class ModelFiles(ABC):
    """The files of one model.

    Attributes:
        name: What messages call it.
        files: The names of the files it has, relative to its root, with '/'.
        origin: The Hub repository it comes from, or `demo`; None for a folder.
    """

    def __init__(self, name: str, files: frozenset[str], origin: str | None) -> None:
        self.name = name
        self.files = files
        self.source_repo = origin

    def local_path(self, filename: str) -> Path:
        """Where a file lies on disk; it is downloaded first if need be.

        Raises:
            CheckpointError: The model has no such file.
            DownloadError: The file could not be downloaded.
        """
        if filename not in self.files:
            raise CheckpointError(f"{self.name}: there is no file {filename!r} in this model")
        return self._locate(filename)

    @abstractmethod
    def _locate(self, filename: str) -> Path:
        """Where one of `files` lies on disk."""


def resolve_model(name: str, revision: str | None = None) -> ModelFiles:
    """Find a model's files; only their names are asked for yet.

    Args:
        name: A short name (`small`), else an existing folder, else a repository (`facebook/musicgen-small`).
        revision: A branch, tag or commit of the Hub repository; its main branch if None.

    Raises:
        CheckpointError: There is no such folder, repository or revision.
        DownloadError: The Hub can't be asked and the cache has nothing of the model.
        UsageError: `name` can be none of the three, or a folder was given together with a revision.
    """
    if name == DEMO:
        if revision is not None:
            raise UsageError(f"{DEMO}: the model in this package has no revision; leave the revision out")
        return LocalFolder(DEMO, _DEMO_FOLDER, DEMO)
    if name in SHORT_NAMES:
        return HubRepository(SHORT_NAMES[name], revision)
    folder = _as_folder(name)
    if name and folder.is_dir():
        if revision is not None:
            raise UsageError(f"{name}: a local folder has no revision {revision!r}; leave the revision out")
        return LocalFolder(name, folder)
    if _looks_like_path(name):
        if folder.is_file():
            raise CheckpointError(f"{name}: this is a file; give the folder that it lies in")
        raise CheckpointError(f"{name}: no such folder; check its path")
    if not _is_repository_name(name):
        raise UsageError(f"{name!r} is neither a folder nor a possible name of a Hub repository; {_KNOWN}")
    return HubRepository(name, revision)


def _as_folder(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~somebody`, whom this machine doesn't know
        return Path(name)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or name.count("/") > 1


def _is_repository_name(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


class LocalFolder(ModelFiles):
    """A folder on disk: its files, and those one folder below."""

    def __init__(self, name: str, folder: Path, origin: str | None = None) -> None:
        found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())
        super().__init__(name, frozenset(path.relative_to(folder).as_posix() for path in found), origin)
        self._folder = folder

    def _locate(self, filename: str) -> Path:
        return self._folder / filename


class HubRepository(ModelFiles):
    """A repository on the Hub at one commit; if the Hub can't be asked, what the cache has of it."""

    def __init__(self, repository: str, revision: str | None) -> None:
        self._repository = repository
        self._revision = revision or "main"
        name = repository
        try:
            self._commit, files = self._listed()
        except MusicGenError:
            self._commit, files = self._cached()
            if not files:
                raise
            # A file that is missing now may be missing in the cache only: every message should say so.
            name = f"{repository} (as cached; the Hub could not be asked)"
        super().__init__(name, files, repository)

    def _listed(self) -> tuple[str, frozenset[str]]:
        """The commit and the files according to the Hub: one request, no retries."""
        with self._library():
            info = _api().model_info(self._repository, revision=self._revision, timeout=_TIMEOUT)
            if info.sha is None or info.siblings is None:
                raise ValueError("no commit or no files")
            return info.sha, frozenset(sibling.rfilename for sibling in info.siblings)

    def _cached(self) -> tuple[str, frozenset[str]]:
        """The commit and the files that earlier runs left in the cache, perhaps none."""
        with self._library():
            reference = self._storage / "refs" / self._revision
            commit = reference.read_text() if reference.is_file() else self._revision
            if not re.fullmatch(r"[0-9a-f]{40}", commit):
                return commit, frozenset()
            snapshot = self._storage / "snapshots" / commit
            found = (path for path in snapshot.rglob("*") if path.is_file())
            return commit, frozenset(path.relative_to(snapshot).as_posix() for path in found)

    def _locate(self, filename: str) -> Path:
        from huggingface_hub import try_to_load_from_cache

        with self._library(filename):
            path = try_to_load_from_cache(self._repository, filename, revision=self._commit)
            if not isinstance(path, str):
                self._download(filename)
                # It finds the content in the cache already and links it into the commit's snapshot.
                path = _api().hf_hub_download(self._repository, filename, revision=self._commit)
        self._remember_commit()
        return Path(path)

    def _download(self, filename: str) -> None:
        """Put a file's verified content where `hf_hub_download` looks for it, in the cache's `blobs`.

        Left to itself `hf_hub_download` begins each attempt from nothing, over Xet as over HTTP: hence plain
        HTTP into a partial file whose name the next run knows.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock, build_hf_headers

        headers = build_hf_headers(library_name=_LIBRARY, library_version=_version())
        headers["Accept-Encoding"] = "identity"  # offsets shall count the file's bytes, not compressed ones
        url = hf_hub_url(self._repository, filename, revision=self._commit)
        metadata = get_hf_file_metadata(url, headers=headers, timeout=_TIMEOUT)
        if metadata.etag is None:
            raise ValueError("no ETag")

        blob = self._storage / "blobs" / metadata.etag
        partial = blob.with_name(f"{blob.name}.incomplete")
        lock = self._storage.parent / ".locks" / self._storage.name / f"{blob.name}.lock"
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # another process may be fetching the same file
            if blob.exists():
                return
            with partial.open("ab") as file:
                if metadata.size is not None and file.tell() > metadata.size:
                    file.truncate(0)
                    file.seek(0)
                http_get(
                    url,
                    file,
                    resume_size=file.tell(),
                    headers=headers,
                    expected_size=metadata.size,
                    displayed_filename=filename,
                )
            if not _has_checksum(partial, metadata.etag):
                partial.unlink()
                raise DownloadError(
                    f"{self._repository}: {filename} arrived damaged (its checksum is wrong) and was deleted;"
                    " run the same command again to download it anew"
                )
            partial.replace(blob)

    def _remember_commit(self) -> None:
        """Note which commit the revision stands for, so that a later run finds it without the Hub."""
        if self._revision == self._commit:
            return
        reference = self._storage / "refs" / self._revision
        try:
            if not reference.is_file() or reference.read_text() != self._commit:
                reference.parent.mkdir(parents=True, exist_ok=True)
                reference.write_text(self._commit)
        except OSError:
            pass  # a cache that has the files and can't be written serves all the same

    @property
    def _storage(self) -> Path:
        """The repository's folder in the cache."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self._repository, repo_type="model")

    @contextmanager
    def _library(self, filename: str | None = None) -> Iterator[None]:
        """Use huggingface_hub: its warnings stay silent, its failures become ours.

        Args:
            filename: The file that is being downloaded; None while the model's files are listed.
        """
        from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever the library uses
        from huggingface_hub.utils import logging

        verbosity = logging.get_verbosity()
        if verbosity == logging.WARNING:  # the default; who asked for more, or for less, gets that
            logging.set_verbosity_error()
        try:
            yield
        except (HTTPError, OSError, ValueError) as error:
            raise self._translate_error(error, filename) from error
        finally:
            logging.set_verbosity(verbosity)

    def _translate_error(self, error: Exception, filename: str | None) -> MusicGenError:
        from huggingface_hub import constants, errors

        name, cache, hub = self._repository, constants.HF_HUB_CACHE, constants.ENDPOINT
        wanted = f"{name}: {filename}" if filename else name
        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # "not in the cache", because of this
        reason = (str(error) or type(error).__name__).splitlines()[0]

        if isinstance(error, errors.OfflineModeIsEnabled):
            return DownloadError(
                f"{wanted} is not in the cache ({cache}), and HF_HUB_OFFLINE forbids to download it;"
                f" unset that, {_INSTEAD}"
            )
        if isinstance(error, errors.HfHubHTTPError):
            return self._answer_explained(error, wanted)
        if isinstance(error, errors.HTTPError):
            if filename:
                return DownloadError(
                    f"{wanted}: the connection was lost ({reason}); run the same command again to resume"
                )
            return DownloadError(
                f"{name} is not in the cache, and the Hub ({hub}) can't be reached ({reason});"
                f" check the network, {_INSTEAD}"
            )
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return DownloadError(
                    f"{wanted}: no space left in the cache {cache}; free some or set HF_HOME to a folder with"
                    " more, and run the same command again to resume"
                )
            if error.errno is not None:
                place = error.filename or cache
                return DownloadError(
                    f"{wanted}: the cache {cache} can't be used ({error.strerror}: {place});"
                    " set HF_HOME to a folder that can be written"
                )
            return DownloadError(f"{wanted}: {reason}; run the same command again")
        return DownloadError(
            f"{wanted}: {hub} doesn't answer as the Hub would ({reason}); check HF_ENDPOINT, and that no"
            " proxy or login page stands in between"
        )

    def _answer_explained(self, error: HfHubHTTPError, wanted: str) -> MusicGenError:
        """What the Hub means by an HTTP status."""
        from huggingface_hub import constants, errors

        name, hub, status = self._repository, constants.ENDPOINT, error.response.status_code
        if isinstance(error, errors.RevisionNotFoundError):
            return CheckpointError(
                f"{name} has no revision {self._revision!r} on the Hub; give one of its branches, tags or"
                " commits"
            )
        if isinstance(error, errors.EntryNotFoundError):
            return CheckpointError(f"{wanted}: the Hub has lost this file; run the same command again")
        bad_token = "credentials" in (error.server_message or "")
        if isinstance(error, errors.GatedRepoError) or status == 403 or bad_token:
            return DownloadError(
                f"{wanted}: the Hub denies access ({status}); accept the model's terms on its page if it has"
                " any, and log in with `hf auth login` or set HF_TOKEN"
            )
        if status == 401:  # so the Hub answers anybody it doesn't know, whether or not there is such a model
            return CheckpointError(
                f"no model {name!r} on the Hub ({hub}), or a private one (then log in with `hf auth login` or"
                f" set HF_TOKEN); {_KNOWN}"
            )
        if status == 404:
            return CheckpointError(f"no model {name!r} on the Hub ({hub}); {_KNOWN}")
        return DownloadError(f"{wanted}: the Hub answers with error {status}; try again in a while")


def _has_checksum(path: Path, etag: str) -> bool:
    """Whether a file is what its ETag says: the SHA-256 of a large file, git's SHA-1 of a small one."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", etag):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True  # not one of the Hub's own: nothing to compare with
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == etag


_LIBRARY = "musicgen-mlx"  # how requests call us


def _version() -> str:
    from audiocraft_mlx.version import __version__

    return __version__


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name=_LIBRARY, library_version=_version())
