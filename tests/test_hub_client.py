"""The parts of huggingface_hub that are used without a promise of stability are as `hub_client` expects."""

from __future__ import annotations

import ast
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import HfFileMetadata, http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, logging, validate_repo_id

PACKAGE = Path(__file__).parent.parent / "audiocraft_mlx"


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (validate_repo_id, ("a/b",), {}),
        (repo_folder_name, (), {"repo_id": "a/b", "repo_type": "model"}),
        (HfApi, (), {"library_name": "musicgen-mlx", "library_version": "1"}),
        (HfApi.model_info, (HfApi, "a/b"), {"revision": "main", "timeout": 1.0}),
        (hf_hub_url, ("a/b", "config.json"), {"revision": "main"}),
        (get_hf_file_metadata, ("https://x",), {"headers": {}, "timeout": 1.0}),
        (
            http_get,
            ("https://x", io.BytesIO()),
            {"resume_size": 0, "headers": {}, "expected_size": 1, "displayed_filename": "config.json"},
        ),
        (WeakFileLock, (Path("lock"),), {}),
        (build_hf_headers, (), {"library_name": "musicgen-mlx", "library_version": "1"}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signatures(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Each function takes the arguments that `hub_client` passes, and requires no others."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    variadic = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    # With **kwargs any name would bind.
    assert inspect.Parameter.VAR_KEYWORD not in variadic
    assert kwargs.keys() <= bound.arguments.keys()


def test_file_metadata_has_checksum_and_size() -> None:
    assert {"etag", "size"} <= set(inspect.signature(HfFileMetadata).parameters)


def test_constants_are_strings() -> None:
    assert isinstance(constants.HF_HUB_CACHE, str)
    assert isinstance(constants.ENDPOINT, str)


def test_folder_of_a_repository_in_the_cache() -> None:
    assert repo_folder_name(repo_id="a/b", repo_type="model") == "models--a--b"


def test_headers_name_the_program() -> None:
    headers = build_hf_headers(library_name="musicgen-mlx", library_version="1")
    assert headers["user-agent"].startswith("musicgen-mlx/1")


def test_a_lock_is_a_context_manager(tmp_path: Path) -> None:
    with WeakFileLock(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()


def test_verbosity_is_that_of_the_logging_module() -> None:
    assert {"WARNING", "get_verbosity", "set_verbosity", "set_verbosity_error"} <= set(dir(logging))


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (errors.HTTPError, Exception),
        (errors.HfHubHTTPError, errors.HTTPError),
        (errors.RevisionNotFoundError, errors.HfHubHTTPError),
        (errors.EntryNotFoundError, Exception),
        (errors.RemoteEntryNotFoundError, errors.HfHubHTTPError),
        (errors.GatedRepoError, errors.HfHubHTTPError),
        (errors.LocalEntryNotFoundError, OSError | ValueError),
        (errors.OfflineModeIsEnabled, OSError),
        (errors.HFValidationError, ValueError),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_errors_derive_from_what_is_caught(error: type[Exception], base: type[Exception]) -> None:
    assert issubclass(error, base)


def test_only_hub_client_imports_the_library() -> None:
    """`huggingface_hub.errors` is public: others translate its classes."""
    imports = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported(node)
        if name.startswith("huggingface_hub")
    }
    others = {(path, name) for path, name in imports if path != "checkpoints/hub_client.py"}
    assert {path for path, _ in others} == {"checkpoints/model_files.py", "doctor/hub_facts.py"}
    assert {name for _, name in others} == {"huggingface_hub.errors", "huggingface_hub.errors.HfHubHTTPError"}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []
