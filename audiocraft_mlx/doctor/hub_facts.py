"""The Hub's cache, and whether the Hub answers."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

from audiocraft_mlx.checkpoints import hub_client
from audiocraft_mlx.checkpoints.model_files import SHORT_NAMES
from audiocraft_mlx.doctor.finding import Finding, Value, ok, warning

TIMEOUT = 4.0
"""Seconds that the Hub has to answer. Looking up its name counts, which no HTTP client limits."""
PROBE = SHORT_NAMES["small"]
_PARTS = ("t5-base", "google-t5/t5-base", "t5-large", "google-t5/t5-large", "facebook/encodec_32khz")
REPOSITORIES = (*SHORT_NAMES.values(), *_PARTS, "m-a-p/MERT-v1-95M")
"""What our models consist of on the Hub."""
SMALL_DOWNLOAD = 2 * 10**9
"""Bytes of musicgen-small with its text encoder and codec."""


def cache() -> Finding:
    """Where downloads go, what is there of ours, and whether there is room for more."""
    hub_client.check_environment()
    folder = hub_client.cache_folder()
    sizes = {repo: size for repo in REPOSITORIES if (size := _size(hub_client.repo_folder(repo))) is not None}
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable, free = os.access(existing, os.W_OK), shutil.disk_usage(existing).free
    total = sum(sizes.values())
    count = f"{len(sizes)} of our repositories, {total / 1e9:.1f} GB" if sizes else "none of our models"
    text = f"{folder}: {count}; {free / 1e9:.0f} GB free"
    values: dict[str, Value] = {
        "folder": str(folder),
        "repositories": len(sizes),
        "bytes": total,
        "free_bytes": free,
        "writable": writable,
    }
    if not writable:
        return warning(f"{text}; it can't be written", "set HF_HOME to a folder that you may write", **values)
    if free < SMALL_DOWNLOAD:
        return warning(text, "musicgen-small needs 2 GB: free some, or set HF_HOME to another disk", **values)
    return ok(text, **values)


def hub(timeout: float = TIMEOUT) -> Finding:
    """Whether the Hub answers. That it doesn't is a warning at most: what is cached works without it."""
    hub_client.check_environment()
    answer: list[Finding] = []
    # A thread that is left behind: nothing ends a look-up of a name that gets no answer.
    thread = threading.Thread(target=lambda: answer.append(_ask(timeout)), daemon=True)
    thread.start()
    thread.join(timeout + 0.5)
    return answer[0] if answer else _unreachable(f"no answer within {timeout:g} s")


def _ask(timeout: float) -> Finding:
    try:
        from huggingface_hub import errors

        with hub_client.quiet():
            try:
                hub_client.list_files(PROBE, "main", timeout)
            except errors.OfflineModeIsEnabled:
                return ok("not asked: HF_HUB_OFFLINE is set", reachable=None, endpoint=_host())
            except errors.HfHubHTTPError as error:
                status = error.response.status_code
                return warning(
                    f"{_host()} answers, but with {status} for {PROBE}",
                    "remove the token if it is invalid (a public model needs none), and check HF_ENDPOINT",
                    reachable=True,
                    endpoint=_host(),
                )
    # Every kind of network has a failure of its own, and none of them is this program's.
    except Exception as error:
        reason = hub_client.without_secrets((str(error) or type(error).__name__).splitlines()[0])
        return _unreachable(reason)
    return ok(f"{_host()} answers", reachable=True, endpoint=_host())


def _unreachable(reason: str) -> Finding:
    return warning(
        f"{_host()} can't be reached ({reason})",
        "cached models, folders and -m demo work without it; to download, check the network and proxy",
        reachable=False,
        endpoint=_host(),
    )


def _host() -> str:
    """Of the Hub, without what a URL may have of a user."""
    try:
        url = urlsplit(hub_client.endpoint())
        return url.hostname or "the Hub"
    except ValueError:
        return "the Hub"


def _size(repository: Path) -> int | None:
    """Bytes of a repository in the cache; None if it isn't there or can't be read."""
    if not os.access(repository, os.R_OK | os.X_OK):
        return None
    size = 0
    for folder, _, names in os.walk(repository):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():  # snapshots link to blobs
                size += path.stat().st_size
    return size
