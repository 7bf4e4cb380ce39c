"""Takes out of a text what says who its user is: it is meant to be published."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

from audiocraft_mlx.checkpoints.hub_client import without_secrets

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{6,}")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")
_ANY_HOME = re.compile(r"/(?:home|Users)/[^/\s:,;'\"()]+")


def redact(text: str, home: Path | None = None, user: str | None = None) -> str:
    """`text` with `~` for homes and users in paths, and without tokens and the users of URLs.

    `home` and `user` are those of this process by default.
    """
    for token in filter(None, (os.environ.get(name) for name in _TOKENS)):
        text = text.replace(token, "<token>")
    text = without_secrets(_TOKEN.sub("<token>", text))
    home = _home() if home is None else home
    for path in filter(None, {str(home), os.path.realpath(home)} if home is not None else set()):
        if path != "/":
            text = re.sub(rf"{re.escape(path)}(?![\w-])", "~", text)
    text = _ANY_HOME.sub("~", text)
    user = _user() if user is None else user
    if user:  # a part of another path, such as /scratch/USER
        text = re.sub(rf"(?<=/){re.escape(user)}(?=/|$|[\s:,;'\")])", "~", text)
    return text


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # of a user without an entry
        return None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return None
