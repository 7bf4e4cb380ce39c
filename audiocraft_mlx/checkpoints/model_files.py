"""A model's name → its files: a short name, a repository on the Hugging Face Hub, or a local folder.

Downloads go to the cache of `huggingface_hub`, which other programs share, in its layout. Two things are
done here because that library doesn't: an interrupted download is resumed by the next run, and a file is
compared with its checksum before it counts as downloaded.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from audiocraft_mlx.checkpoints import hub_client
from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError, UsageError
from audiocraft_mlx.files import expand_home

if TYPE_CHECKING:
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
MAGNET_NAMES = {
    f"magnet-{size}-{seconds}s": f"facebook/magnet-{size}-{seconds}secs"
    for seconds in (10, 30)
    for size in ("small", "medium")
} | {f"audio-magnet-{size}": f"facebook/audio-magnet-{size}" for size in ("small", "medium")}
"""Models that fill masks."""
SHORT_NAMES |= MAGNET_NAMES
_KNOWN = f"known short names: {', '.join(SHORT_NAMES)}, demo"

# The small model in this package.
DEMO = "demo"
_DEMO_FOLDER = Path(__file__).parent.parent / DEMO
ALTERNATIVES = f"give a local folder, or use the model {DEMO!r}, which needs no download"
"""What to do without the Hub, in messages about a model."""

# Repositories that moved, and whose old names go on working; programs cache them under either.
_TWINS = {f"t5-{size}": f"google-t5/t5-{size}" for size in ("small", "base", "large", "3b", "11b")}
_TWINS |= {new: old for old, new in _TWINS.items()}

_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_PAGES_OF_A_REVISION = ("tree", "blob", "resolve", "raw", "commit", "commits")
_NOT_MODELS = {"spaces": "a space", "datasets": "a dataset", "collections": "a collection"}

# Seconds to wait for the Hub's list of files or a file's metadata before falling back to the cache.
_TIMEOUT = 10
CODEC_FILE = "compression_state_dict.bin"
"""The codec beside a model in audiocraft's format."""
_TRAINING_SUFFIXES = (".th", ".pt", ".pth", ".ckpt", ".tar")
"""Of torch files that are a model by themselves: a training's, not those of the formats for folders."""

# Folders in one another that a repository may have; each of those that we read has one level.
_MAX_DEPTH = 8

_LFS_POINTER = b"version https://git-lfs"
"""How the small files begin that `git clone` leaves in place of large ones where git-lfs isn't installed."""


class ModelFiles(ABC):
    """The files of one model.

    Attributes:
        name: The model's name in messages.
        files: The names of its files, relative to its root, with '/'.
        source_repo: The Hub repository it comes from, or `demo`; None for a folder.
        unreachable: Why `files` are only those in the cache; None if they are all that it has.
    """

    def __init__(
        self,
        name: str,
        files: frozenset[str],
        source_repo: str | None,
        unreachable: MusicGenError | None = None,
    ) -> None:
        self.name = name
        self.files = files
        self.source_repo = source_repo
        self.unreachable = unreachable

    def local_path(self, filename: str) -> Path:
        """The path of a file on disk; it is downloaded first if need be.

        Raises:
            CheckpointError: The model has no such file.
            DownloadError: The file could not be downloaded.
        """
        if filename not in self.files:
            raise CheckpointError(f"{self.name}: there is no file {filename!r} in this model")
        return self._locate(filename)

    def has(self, needed: Sequence[tuple[str, ...]], local: bool = False) -> bool:
        """Whether it has one file of each tuple of names; if `local`, on disk already."""
        return all(
            any(name in self.files and (not local or self._is_local(name)) for name in names)
            for names in needed
        )

    @abstractmethod
    def _is_local(self, filename: str) -> bool:
        """Whether one of `files` is on disk."""

    @abstractmethod
    def _locate(self, filename: str) -> Path:
        """The path of one of `files` on disk."""


def resolve_model(name: str, revision: str | None = None) -> ModelFiles:
    """Find a model; of its files only the names are read yet.

    Args:
        name: A short name (`small`), else an existing folder, else a repository (`facebook/musicgen-small`).
            `musicgen-small` is the short name, too, unless it is a folder.
        revision: A branch, tag or commit of the Hub repository; its main branch if None.

    Raises:
        CheckpointError: There is no such folder, repository or revision.
        DownloadError: The Hub can't be reached and the cache has no file of the model.
        UsageError: `name` is no valid name of any kind, or a folder was given together with a revision.
    """
    return _resolve(name, revision, ownerless=tuple(_TWINS))


def released_repository(name: str) -> str | None:
    """The repository of a released model that `name` means, as for `resolve_model`; None for another name."""
    if name in SHORT_NAMES or name in SHORT_NAMES.values():
        return SHORT_NAMES.get(name, name)
    long_form = f"facebook/{name}"
    if long_form in SHORT_NAMES.values() and not stat.S_ISDIR(_mode(expand_home(name))):
        return long_form
    return None


def _resolve(name: str, revision: str | None, ownerless: Sequence[str] | None = None) -> ModelFiles:
    """`resolve_model`; of the names without an owner only `ownerless` are repositories, or all if None."""
    if name == DEMO:
        if revision is not None:
            raise UsageError(f"{DEMO}: the model in this package has no revisions; leave the revision out")
        return LocalFolder(DEMO, _DEMO_FOLDER, DEMO)
    if name in SHORT_NAMES:
        return HubRepository(SHORT_NAMES[name], revision)
    folder = expand_home(name)
    mode = _mode(folder) if name else 0
    if stat.S_ISDIR(mode):
        if revision is not None:
            raise UsageError(f"{name}: a local folder has no revision {revision!r}; leave the revision out")
        return LocalFolder(name, folder)
    if stat.S_ISREG(mode) and name.lower().endswith(_TRAINING_SUFFIXES):
        if revision is not None:
            raise UsageError(f"{name}: a local file has no revision {revision!r}; leave the revision out")
        return LocalFile(name, folder)
    url = _parse_url(name)
    if url is not None:
        repo, named = url
        if revision is not None and named not in (None, revision):
            raise UsageError(
                f"{hub_client.without_secrets(name)!r} is a URL of the revision {named!r}, not of"
                f" {revision!r}; give one of the two only"
            )
        return HubRepository(repo, revision or named)
    if _looks_like_path(name):
        if mode:
            raise CheckpointError(
                f"{name}: this is a file; give the folder that contains it, or for weights without a"
                " configuration the model that they were trained from: -m BASE --weights FILE"
            )
        raise CheckpointError(f"{name}: no such folder; check its path")
    if not hub_client.is_repo_name(name):
        raise UsageError(f"{name!r} is neither a folder nor a valid name of a Hub repository; {_KNOWN}")
    released = released_repository(name)
    if released is None and "/" not in name and ownerless is not None and name not in ownerless:
        # The Hub has such repositories from its first years only, and none of them is a model of music. What
        # is really a typo would end as a fault of the network where there is none.
        raise CheckpointError(f"no model {name!r}: {_did_you_mean(name)}{_KNOWN}")
    return HubRepository(released or name, revision)


def _did_you_mean(name: str) -> str:
    """A suggestion for a name that is none, or what else it could be: the beginning of a sentence."""
    short = name.lower().removeprefix("musicgen-")
    for close in difflib.get_close_matches(short, (*SHORT_NAMES, DEMO), n=1):
        return f"did you mean {close}? "
    return "there is no such folder, and a repository on the Hub is called OWNER/NAME; "


def cached_bytes(repo: str) -> int | None:
    """Bytes of a repository's files in the cache, without asking the Hub; None: it has no weights there.

    Of an interrupted download whole files count.
    """
    with suppress(MusicGenError, OSError):
        repository = HubRepository(repo, None, cache_only=True)
        if any(name.endswith((".bin", ".safetensors")) for name in repository.files):
            return sum(repository.local_path(name).stat().st_size for name in repository.files)
    return None


def released_condition_types(name: str) -> frozenset[str] | None:
    """The condition types of a released model, which needn't be downloaded for that; None for others."""
    released = DEMO if name == DEMO else released_repository(name)
    if released is None:
        return None
    return frozenset({"text", *(kind for kind in ("melody", "style") if kind in released)})


def released_as_magnet(name: str) -> bool | None:
    """Whether a released model fills masks, which needn't be downloaded for that; None for others."""
    released = DEMO if name == DEMO else released_repository(name)
    return None if released is None else released in MAGNET_NAMES.values()


def _parse_url(name: str) -> tuple[str, str | None] | None:
    """The repository and revision (None for its main branch) of a URL of the Hub; None for another name.

    Raises `UsageError` for any other URL.
    """
    text = name.strip()
    if text.startswith("git@"):
        text = f"ssh://{text.replace(':', '/', 1)}"
    elif "://" not in text:
        if text.partition("/")[0].lower() not in _HUB_HOSTS:
            return None
        text = f"https://{text}"

    def refuse(what: str) -> UsageError:
        shown = hub_client.without_secrets(name)[:200]
        return UsageError(
            f"{shown!r} is {what}; give a repository of a model, such as facebook/musicgen-small, or a folder"
        )

    hub_client.check_environment()
    endpoint = f"{hub_client.endpoint()}/"
    if text.startswith(endpoint):
        text = f"hf://{text.removeprefix(endpoint)}"
    try:
        url = urlsplit(text)
    except ValueError as error:
        raise refuse("a URL that is not of the Hub") from error
    host = url.netloc.rpartition("@")[2].lower()
    if url.scheme != "hf" and (url.scheme not in ("http", "https", "ssh") or host not in _HUB_HOSTS):
        raise refuse("a URL that is not of the Hub")
    path = f"{url.netloc}{url.path}" if url.scheme == "hf" else url.path
    parts = [unquote(part) for part in path.split("/") if part]
    if parts and parts[0] in _NOT_MODELS:
        raise refuse(f"the URL of {_NOT_MODELS[parts[0]]}")
    if parts and parts[0] == "models":
        del parts[0]
    end = next((at for at in (1, 2) if parts[at : at + 1] and parts[at] in _PAGES_OF_A_REVISION), None)
    repo, _, revision = "/".join(parts[: end or 2]).removesuffix(".git").partition("@")
    if end is not None and len(parts) > end + 1:
        revision = parts[end + 1]
    if not repo or not hub_client.is_repo_name(repo):
        raise refuse("a URL of the Hub with no repository")
    return repo, revision if revision not in ("", "main") else None


def resolve_part(name: str, needed: Sequence[tuple[str, ...]]) -> ModelFiles:
    """Find a part that a checkpoint only names, such as its text encoder.

    Where two repositories have the same files, the one that the cache has is taken.

    Args:
        name: As for `resolve_model`.
        needed: The files that the part must have; of each tuple of names, one.

    Raises:
        CheckpointError, DownloadError, UsageError: As `resolve_model`; and also if the Hub can't be reached
            and the cache has only some of the files.
    """
    try:
        found = _resolve(name, None)
    except MusicGenError:
        twin = _cached_twin(name, needed)
        if twin is None:
            raise
        return twin
    if found.has(needed, local=True):
        return found
    twin = _cached_twin(name, needed)
    if twin is not None:
        return twin
    if found.unreachable is not None and not found.has(needed):
        raise found.unreachable
    return found


def _cached_twin(name: str, needed: Sequence[tuple[str, ...]]) -> ModelFiles | None:
    """The repository with the same files as `name`, if the cache has those that are needed."""
    with suppress(MusicGenError):
        if name in _TWINS:
            twin = HubRepository(_TWINS[name], None, cache_only=True)
            return twin if twin.has(needed) else None
    return None


def _mode(path: Path) -> int:
    """The kind and permissions of what is at `path`, 0 for nothing. Raises `CheckpointError`."""
    try:
        return path.stat().st_mode
    except PermissionError as error:
        if not path.is_absolute() and not _can_enter_current_folder():
            return 0  # nothing can be found from here, and the name may be that of a repository
        raise read_error(path, error) from error
    except (OSError, ValueError):  # nothing there, or no name of a file at all
        return 0


def _can_enter_current_folder() -> bool:
    try:
        os.stat("./.")
    except OSError:
        return False
    return True


def read_error(path: Path, error: OSError) -> CheckpointError:
    """The error for a file or folder of a model that can't be read."""
    if isinstance(error, PermissionError):
        return CheckpointError(
            f"permission denied: {path}; change its permissions, or give a copy that you may read"
        )
    return CheckpointError(
        f"{path} can't be read ({error.strerror or error}); check the path and its permissions"
    )


def check_readable(path: Path) -> None:
    """Look into a file: the libraries that read it don't tell why they can't.

    Raises `CheckpointError`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise read_error(path, error) from error
    if head == _LFS_POINTER:
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` or download it again"
        )


def _list_folder(folder: Path, depth: int) -> frozenset[str]:
    """The files in `folder` and its subfolders down to `depth`, relative to it, with '/'.

    What may not be looked at counts as a file, so that opening it says so; a subfolder that may not be
    listed has no files. Raises `OSError` if `folder` itself can't be listed.
    """
    files: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                mode = entry.stat().st_mode
            except PermissionError:
                mode = stat.S_IFREG
            except OSError:  # a link to nothing
                continue
            if stat.S_ISREG(mode):
                files.add(entry.name)
            elif stat.S_ISDIR(mode) and depth > 1:
                with suppress(OSError):
                    files |= {f"{entry.name}/{name}" for name in _list_folder(Path(entry.path), depth - 1)}
    return frozenset(files)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or name.count("/") > 1


class _LocalFiles(ModelFiles):
    """Files below a folder on disk."""

    def __init__(self, name: str, folder: Path, files: frozenset[str], source_repo: str | None) -> None:
        super().__init__(name, files, source_repo)
        self._folder = folder

    def _is_local(self, filename: str) -> bool:
        return True

    def _locate(self, filename: str) -> Path:
        path = self._folder / filename
        check_readable(path)
        return path


class LocalFolder(_LocalFiles):
    """A folder on disk: the files in it and in its subfolders, one level deep."""

    def __init__(self, name: str, folder: Path, source_repo: str | None = None) -> None:
        try:
            files = _list_folder(folder, depth=2)
        except OSError as error:
            raise read_error(folder, error) from error
        super().__init__(name, folder, files, source_repo)


class LocalFile(_LocalFiles):
    """A training's file on disk, which is a model by itself, and the codec beside it, if there is one.

    Attributes:
        main_file: The name of the file.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.main_file = path.name
        files = {path.name, *(name for name in (CODEC_FILE,) if _mode(path.parent / name))}
        super().__init__(name, path.parent, frozenset(files), None)


class HubRepository(ModelFiles):
    """A repository on the Hub at one commit; if the Hub can't be reached, its files in the cache.

    With `cache_only` the Hub isn't asked, and there may be no files.
    """

    def __init__(self, repo: str, revision: str | None, cache_only: bool = False) -> None:
        hub_client.check_environment()
        self._repo = repo
        self._revision = revision or "main"
        name, unreachable = repo, None
        try:
            with self._translated_errors():
                self._commit, files = (
                    self._list_cached()
                    if cache_only
                    else hub_client.list_files(repo, self._revision, _TIMEOUT)
                )
        except MusicGenError as error:
            self._commit, files = self._list_cached()
            if not files:
                raise
            # A file that is missing may be missing in the cache only: each message should say so.
            name, unreachable = f"{repo} (as cached; the Hub could not be reached)", error
        super().__init__(name, files, repo, unreachable)

    def _list_cached(self) -> tuple[str, frozenset[str]]:
        """The commit and the files in the cache, possibly none."""
        with self._translated_errors():
            reference = self._storage / "refs" / self._revision
            commit = reference.read_text() if reference.is_file() else self._revision
            if not re.fullmatch(r"[0-9a-f]{40}", commit):
                return commit, frozenset()
            snapshot = self._storage / "snapshots" / commit
            if not snapshot.is_dir():
                return commit, frozenset()
            return commit, _list_folder(snapshot, _MAX_DEPTH)

    def _is_local(self, filename: str) -> bool:
        return hub_client.find_cached(self._repo, filename, self._commit) is not None

    def _locate(self, filename: str) -> Path:
        with self._translated_errors(filename):
            path = hub_client.find_cached(self._repo, filename, self._commit)
            if path is None:
                blob = self._download(filename)
                path = hub_client.link_cached(self._repo, filename, self._commit, blob)
            path.open("rb").close()  # says why, if it can't be read
        self._save_commit()
        return path

    def _download(self, filename: str) -> Path:
        """Put a file's verified content into the cache's `blobs`; its path.

        `hf_hub_download` alone would start each attempt from the first byte, over Xet as over HTTP: hence
        plain HTTP into a partial file whose name the next run knows.
        """
        metadata = hub_client.file_metadata(self._repo, filename, self._commit, _TIMEOUT)
        blob = self._storage / "blobs" / metadata.etag
        partial = blob.with_name(f"{blob.name}.incomplete")
        lock = self._storage.parent / ".locks" / self._storage.name / f"{blob.name}.lock"
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with hub_client.file_lock(lock):  # another process may be downloading the same file
            if blob.exists():
                return blob
            with partial.open("ab") as file:
                if not _may_resume(metadata, file.tell()):
                    file.truncate(0)
                    file.seek(0)
                hub_client.download(metadata, file, filename)
            if not _has_checksum(partial, metadata.etag):
                partial.unlink()
                raise DownloadError(
                    f"{self._repo}: {filename} arrived damaged (its checksum is wrong) and was deleted;"
                    " run the same command again"
                )
            partial.replace(blob)
            return blob

    def _save_commit(self) -> None:
        """Save the revision's commit in the cache, so that a later run finds it without the Hub."""
        if self._revision == self._commit:
            return
        reference = self._storage / "refs" / self._revision
        try:
            if not reference.is_file() or reference.read_text() != self._commit:
                reference.parent.mkdir(parents=True, exist_ok=True)
                reference.write_text(self._commit)
        except OSError:
            pass  # a cache that has the files is usable even if it can't be written

    @property
    def _storage(self) -> Path:
        """The repository's folder in the cache."""
        return hub_client.repo_folder(self._repo)

    @contextmanager
    def _translated_errors(self, filename: str | None = None) -> Iterator[None]:
        """Use huggingface_hub, quietly; its errors become ours.

        Args:
            filename: The file that is being downloaded; None while the model's files are listed.
        """
        with hub_client.quiet():
            try:
                yield
            except (hub_client.connection_error(), OSError, ValueError) as error:
                raise self._translate_error(error, filename) from error

    def _translate_error(self, error: Exception, filename: str | None) -> MusicGenError:
        from huggingface_hub import errors

        name, cache, hub = self._repo, hub_client.cache_folder(), hub_client.shown_endpoint()
        target = f"{name}: {filename}" if filename else name
        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # "not in the cache", because of this
        reason = hub_client.without_secrets((str(error) or type(error).__name__).splitlines()[0])

        if isinstance(error, errors.OfflineModeIsEnabled):
            return DownloadError(
                f"{target} is not in the cache ({cache}), and HF_HUB_OFFLINE forbids downloading it;"
                f" unset that, {ALTERNATIVES}"
            )
        if isinstance(error, errors.HfHubHTTPError):
            return self._translate_status(error, target)
        if isinstance(error, hub_client.connection_error()):
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                return DownloadError(
                    f"{target}: the certificate of {hub} isn't trusted ({reason}); if a proxy of your"
                    " organization is in between, set SSL_CERT_FILE to a file with its certificates too"
                )
            if filename:
                return DownloadError(
                    f"{target}: the connection was lost ({reason}); run the same command again to resume"
                )
            return DownloadError(
                f"{name} is not in the cache, and the Hub ({hub}) can't be reached ({reason});"
                f" check the network, {ALTERNATIVES}"
            )
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return DownloadError(
                    f"{target}: no space left in the cache {cache}; free some or set HF_HOME to a folder with"
                    " more space, and run the same command again to resume"
                )
            if isinstance(error, PermissionError):
                return DownloadError(
                    f"{target}: permission denied: {error.filename or cache}; change its permissions, or set"
                    " HF_HOME to a folder that you may read and write"
                )
            if error.errno is not None:
                path = error.filename or cache
                return DownloadError(
                    f"{target}: the cache {cache} can't be used ({error.strerror}: {path});"
                    " set HF_HOME to a folder that can be written"
                )
            return DownloadError(f"{target}: {reason}; run the same command again")
        return DownloadError(
            f"{target}: {hub} doesn't answer like the Hub ({reason}); check HF_ENDPOINT, and that"
            " there is no proxy or login page in between"
        )

    def _translate_status(self, error: HfHubHTTPError, target: str) -> MusicGenError:
        """The error for an HTTP status of the Hub."""
        from huggingface_hub import errors

        name, hub, status = self._repo, hub_client.shown_endpoint(), error.response.status_code
        if isinstance(error, errors.RevisionNotFoundError):
            return CheckpointError(
                f"{name} has no revision {self._revision!r} on the Hub; give one of its branches, tags or"
                " commits"
            )
        if isinstance(error, errors.EntryNotFoundError):
            return CheckpointError(f"{target}: this file is no longer on the Hub; run the same command again")
        if not isinstance(error, errors.GatedRepoError) and hub_client.is_bad_token(error):
            place = hub_client.token_source() or "HF_TOKEN"
            return DownloadError(
                f"{target}: the Hub denies access ({status}): the token in {place} is invalid or has expired;"
                " remove it (a public model needs none), or log in again with `hf auth login`"
            )
        if isinstance(error, errors.GatedRepoError) or status == 403:
            return DownloadError(
                f"{target}: the Hub denies access ({status}); accept the model's terms on its page if it has"
                " any, and log in with `hf auth login` or set HF_TOKEN"
            )
        if status == 401:  # the Hub's answer to anybody not logged in, whether or not the model exists
            return CheckpointError(
                f"no model {name!r} on the Hub ({hub}), or a private one (then log in with `hf auth login` or"
                f" set HF_TOKEN); {_KNOWN}"
            )
        if status == 404:
            return CheckpointError(f"no model {name!r} on the Hub ({hub}); {_KNOWN}")
        return DownloadError(f"{target}: the Hub answers with error {status}; try again in a while")


def _may_resume(metadata: hub_client.FileMetadata, start: int) -> bool:
    if metadata.size is not None:
        return start <= metadata.size
    # Without a size only a checksum tells whether the rest belongs to what is there.
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", metadata.etag) is not None


def _has_checksum(path: Path, etag: str) -> bool:
    """Whether a file matches its ETag: the SHA-256 of a large file, git's SHA-1 of a small one."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", etag):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True  # not the Hub's: no checksum to compare with
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == etag
