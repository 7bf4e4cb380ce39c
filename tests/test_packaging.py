"""The wheels, the Dockerfile and the workflows fit the code and each other."""

from __future__ import annotations

import re
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from audiocraft_mlx.ops.cpu import extension

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def find(pattern: str, name: str) -> str:
    match = re.search(pattern, text(name), re.MULTILINE)
    assert match, f"{name} has no {pattern}"
    return match[1]


def warning_for(monkeypatch: pytest.MonkeyPatch, mlx: str, abi: int) -> str:
    """The warning with an installed extension that was built for these versions."""
    built_for = ModuleType("audiocraft_mlx_native._built_for")
    built_for.MLX_VERSION, built_for.ABI_VERSION = mlx, abi  # type: ignore[attr-defined]
    package = ModuleType("audiocraft_mlx_native")
    package._built_for = built_for  # type: ignore[attr-defined]
    monkeypatch.delenv(extension.ENV_VAR, raising=False)
    for module in (package, built_for):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert extension.load_extension.__wrapped__() is None
    (warning,) = caught
    return str(warning.message)


def test_native_wheel_for_another_mlx_is_one_line_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert warning_for(monkeypatch, "0.1.2", extension.ABI_VERSION) == (
        f"the native extension isn't used (it was built for MLX 0.1.2, this is {version('mlx')}): "
        "pip install 'mlx[cpu]==0.1.2', or run make install again in a checkout"
    )


def test_native_wheel_for_another_version_of_this_program_names_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = warning_for(monkeypatch, version("mlx"), extension.ABI_VERSION + 1)
    assert f"install audiocraft-mlx-native 0.{extension.ABI_VERSION}, or" in message
    assert "\n" not in message


def test_the_extra_asks_for_the_native_wheels_with_this_programs_functions() -> None:
    abi = extension.ABI_VERSION
    assert find(r'^version = "(\d+\.\d+)\.\d+"$', "native/pyproject.toml") == f"0.{abi}"
    bounds = find(r'^native = \["audiocraft-mlx-native(.*); sys_platform == \'linux\'"\]$', "pyproject.toml")
    assert bounds == f">=0.{abi},<0.{abi + 1}"


def test_wheels_are_repaired_here_as_by_cibuildwheel() -> None:
    container = find(r'^repair-wheel-command = "(auditwheel .*) --wheel-dir', "native/pyproject.toml")
    assert find(r"^(auditwheel .*) --wheel-dir", "native/wheel.sh") == container


def scripts(name: str) -> list[str]:
    """The calls of our scripts: each script and how many words follow it."""
    calls = re.findall(r"^\s*(?:RUN |- run: )?(packaging/\w+\.sh)(.*)$", text(name), re.MULTILINE)
    return [f"{script} {len(words.split())}" for script, words in calls]


@pytest.mark.parametrize("name", ["Dockerfile", ".github/workflows/tests.yml"])
def test_packaging_runs_elsewhere_as_in_ci(name: str) -> None:
    steps = scripts(".ci/run")
    assert [step.split()[0] for step in steps] == [f"packaging/{s}.sh" for s in ("build", "install", "try")]
    found = scripts(name)
    assert found == steps * (len(found) // len(steps))
    assert found


def test_the_docker_image_gets_no_more_than_the_scripts_need() -> None:
    lines = text(".dockerignore").split()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert {"audiocraft_mlx", "native", "packaging", "pyproject.toml"} <= kept
    assert all((ROOT / name).exists() for name in kept)


def test_the_docker_image_runs_as_a_user_and_without_a_compiler() -> None:
    build, final = re.split(r"^FROM ", text("Dockerfile"), flags=re.MULTILINE)[1:]
    assert "g++" in build
    assert not re.search(r"apt-get|g\+\+|^COPY (?!--from=build /opt/)", final, re.MULTILINE)
    assert build.split()[0] == final.split()[0], "another image may have its Python elsewhere"
    assert re.search(r"^USER 1000$", final, re.MULTILINE)
    assert re.search(r"HF_HOME=(\S+)", final)[1] == re.search(r"^VOLUME (\S+)", final, re.M)[1]  # type: ignore[index]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_there_is(workflow: Path) -> None:
    steps = re.findall(r"- run: (.+)", workflow.read_text(encoding="utf-8"))
    targets = re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE)
    for step in steps:
        for target in re.findall(r"^make (\S+)", step):
            assert target in targets
        for file in re.findall(r"(?:^|\s)((?:packaging|tests|\.ci)/\S+)", step):
            assert (ROOT / file).exists(), file
    assert steps


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_commits_with_their_version(workflow: Path) -> None:
    uses = re.findall(r"uses: (.+)", workflow.read_text(encoding="utf-8"))
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
