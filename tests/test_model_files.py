"""Finding and downloading checkpoints, against a fake Hub."""

import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from audiocraft_mlx.checkpoints.demucs import load_htdemucs
from audiocraft_mlx.checkpoints.model_files import (
    SHORT_NAMES,
    released_repository,
    resolve_model,
    resolve_part,
)
from audiocraft_mlx.errors import CheckpointError, DownloadError, MusicGenError, UsageError

from .hub_server import HubServer, digests
from .unprivileged import reachable_folder, unprivileged

REPO = "facebook/musicgen-small"
CONFIG = b'{"model_type": "musicgen"}\n'
WEIGHTS = bytes(range(256)) * 400
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "onnx/decoder.bin": b"unwanted"}
CHUNK = 1000


@pytest.fixture(scope="module", autouse=True)
def no_proxy() -> Iterator[None]:
    """The library's one HTTP client reads the proxies of the environment when it is created."""
    from huggingface_hub import close_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        close_session()
        yield
    close_session()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A fake Hub with musicgen-small and t5-base, which huggingface_hub takes for the real one."""
    import huggingface_hub.file_download
    from huggingface_hub import constants

    server = HubServer({REPO: dict(FILES), "t5-base": {"config.json": b"{}"}})
    # huggingface_hub reads its environment once, when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    # It writes what it has received, and so can resume, in chunks of 10 MB; and it waits between attempts.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with server:
        yield server


@pytest.fixture
def cache(hub: HubServer, tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models--facebook--musicgen-small"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    from huggingface_hub import constants

    return SimpleNamespace(start=lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True))


def failure(
    kind: type[MusicGenError], name: str, filename: str | None = None, revision: str | None = None
) -> str:
    """The message of the error that resolving a model, or getting a file of it, must raise."""

    def use() -> None:
        source = resolve_model(name, revision)
        if filename is not None:
            source.local_path(filename)

    with pytest.raises(kind) as caught:
        use()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    return message


# Names


@pytest.mark.parametrize("short", ["small", "stereo-large", "melody", "style"])
def test_a_short_name_means_metas_repository(hub: HubServer, short: str) -> None:
    hub.repos[f"facebook/musicgen-{short}"] = {"config.json": b"{}"}
    assert resolve_model(short).name == f"facebook/musicgen-{short}"


@pytest.mark.parametrize("long", ["musicgen-small", "musicgen-stereo-medium", "audiogen-medium"])
def test_the_long_form_of_a_short_name_means_the_same(hub: HubServer, long: str) -> None:
    hub.repos[f"facebook/{long}"] = {"config.json": b"{}"}
    assert resolve_model(long).name == f"facebook/{long}"


def test_a_folder_goes_before_the_long_form_of_a_short_name(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("musicgen-small").mkdir()
    Path("musicgen-small", "here").touch()
    assert resolve_model("musicgen-small").files == {"here"}
    assert released_repository("musicgen-small") is None
    assert released_repository("musicgen-medium") == "facebook/musicgen-medium"


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("smal", "small"),
        ("Small", "small"),
        ("musicgen-smal", "small"),
        ("stereo-medum", "stereo-medium"),
        ("audiogen", "audiogen-medium"),
        ("dmo", "demo"),
    ],
)
def test_a_typo_is_answered_without_the_network(hub: HubServer, typo: str, meant: str) -> None:
    message = failure(CheckpointError, typo)
    known = ", ".join([*SHORT_NAMES, "demo"])
    assert message == f"no model {typo!r}: did you mean {meant}? known short names: {known}"
    assert not hub.requests


def test_a_name_like_no_other_is_answered_without_the_network(hub: HubServer) -> None:
    message = failure(CheckpointError, "xyz")
    assert message.startswith(
        "no model 'xyz': there is no such folder, and a repository on the Hub is called"
    )
    assert not hub.requests


def test_a_repository_without_an_owner_is_found(hub: HubServer) -> None:
    assert resolve_model("t5-base").local_path("config.json").read_bytes() == b"{}"


def test_a_short_name_goes_before_a_folder_and_a_folder_before_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("small", REPO):
        Path(folder).mkdir(parents=True)
        Path(folder, "here").touch()
    assert "here" not in resolve_model("small").files
    assert resolve_model(REPO).files == {"here"}


@pytest.mark.parametrize(
    "name", ["./x", "/x", "~/x-x", "~nobody-at-all/x", "a/b/c", "a\\b", "../no-such", "a/"]
)
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(hub: HubServer, name: str) -> None:
    assert f"{name}: no such folder" in failure(CheckpointError, name)
    assert not hub.requests


@pytest.mark.parametrize("name", ["", "a b", "-x", "a--b", "x" * 200])
def test_an_invalid_name_is_a_usage_error_that_lists_the_short_names(hub: HubServer, name: str) -> None:
    assert ", ".join(SHORT_NAMES) in failure(UsageError, name)
    assert not hub.requests


# Folders


def test_a_folder_has_its_files_and_those_one_level_below(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer/spiece.model", "a/b/too-deep"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    source = resolve_model(str(tmp_path))
    assert source.name == str(tmp_path)
    assert source.files == {"config.json", "tokenizer/spiece.model"}
    assert source.local_path("tokenizer/spiece.model").read_text() == "tokenizer/spiece.model"


def test_a_folder_is_found_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert resolve_model("~/model").local_path("config.json") == tmp_path / "model" / "config.json"


def test_a_file_in_place_of_a_folder_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "state_dict.bin").touch()
    assert "this is a file" in failure(CheckpointError, str(tmp_path / "state_dict.bin"))


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    assert "'v1'" in failure(UsageError, str(tmp_path), revision="v1")


@pytest.mark.parametrize("name", ["nothing.json", "../outside", "/etc/hostname"])
def test_a_file_that_the_model_lacks_is_refused(hub: HubServer, tmp_path: Path, name: str) -> None:
    (tmp_path / "model").mkdir()
    for source in (str(tmp_path / "model"), REPO):
        assert f"no file {name!r}" in failure(CheckpointError, source, name)


# Downloads


def test_only_requested_files_are_downloaded(hub: HubServer) -> None:
    source = resolve_model("small")
    assert source.files == set(FILES)
    assert hub.fetched == []
    assert source.local_path("config.json").read_bytes() == CONFIG
    assert source.local_path("model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetched == [f"{REPO}/config.json", f"{REPO}/model.safetensors"]


def test_a_file_in_a_subfolder_is_downloaded(hub: HubServer) -> None:
    assert resolve_model("small").local_path("onnx/decoder.bin").read_bytes() == b"unwanted"


def test_an_empty_file_is_downloaded(hub: HubServer) -> None:
    hub.repos[REPO]["empty.txt"] = b""
    assert resolve_model("small").local_path("empty.txt").read_bytes() == b""


def test_the_next_run_downloads_nothing_again(hub: HubServer) -> None:
    first = resolve_model("small").local_path("model.safetensors")
    hub.requests.clear()
    assert resolve_model("small").local_path("model.safetensors") == first
    assert [request.path for request in hub.requests] == [f"/api/models/{REPO}/revision/main"]


def test_the_cache_is_the_one_that_huggingface_hub_uses(hub: HubServer) -> None:
    from huggingface_hub import hf_hub_download

    ours = resolve_model("small").local_path("model.safetensors")
    hub.requests.clear()
    assert hf_hub_download(REPO, "model.safetensors") == str(ours)
    assert hub.fetched == []
    theirs = hf_hub_download(REPO, "config.json")
    hub.requests.clear()
    assert resolve_model("small").local_path("config.json") == Path(theirs)
    assert hub.fetched == []


def test_of_a_new_commit_only_changed_files_are_downloaded(hub: HubServer) -> None:
    resolve_model("small").local_path("config.json")
    resolve_model("small").local_path("model.safetensors")
    hub.repos[REPO]["config.json"] = b"{}"
    hub.requests.clear()
    source = resolve_model("small")
    assert source.local_path("config.json").read_bytes() == b"{}"
    assert source.local_path("model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetched == [f"{REPO}/config.json"]


def test_a_commit_can_be_pinned(hub: HubServer) -> None:
    commit = hub.commit(REPO)
    path = resolve_model(REPO, commit).local_path("config.json")
    assert path.parent.name == commit


def test_all_files_are_of_the_commit_that_was_opened(hub: HubServer) -> None:
    source = resolve_model("small")
    hub.repos[REPO]["config.json"] = b"newer"
    with pytest.raises(CheckpointError, match="no revision"):
        source.local_path("config.json")


def test_the_token_goes_to_the_hub_but_not_to_its_storage(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    resolve_model("small").local_path("model.safetensors")
    for request in hub.requests:
        assert ("authorization" in request.headers) == (not request.path.startswith("/large/"))


def test_the_user_agent_names_the_project(hub: HubServer) -> None:
    resolve_model("small").local_path("config.json")
    assert all(request.headers["user-agent"].startswith("musicgen-mlx/") for request in hub.requests)


def test_the_library_is_silent_and_its_verbosity_is_restored(
    hub: HubServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(library, "propagate", True)
    library.setLevel(logging.WARNING)
    hub.cut("/large/", after=5000, times=1)
    resolve_model("small").local_path("model.safetensors")
    assert caplog.records == []
    assert library.level == logging.WARNING


# Interruptions


def test_a_cut_connection_is_resumed_at_once(hub: HubServer) -> None:
    hub.cut("/large/", after=5500, times=1)
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS
    ranges = [request.range for request in hub.requests if request.path.startswith("/large/")]
    assert ranges == [None, "bytes=5000-"]


def test_a_lost_connection_is_resumed_by_the_next_run(hub: HubServer) -> None:
    hub.cut("/large/", after=5500, times=1)
    hub.cut("/large/", after=0)
    message = failure(DownloadError, "small", "model.safetensors")
    assert "model.safetensors: the connection was lost" in message
    assert "run the same command again to resume" in message
    hub.heal()
    hub.requests.clear()
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in hub.requests if request.path.startswith("/large/")] == [
        "bytes=5000-"
    ]


def test_a_download_of_a_killed_program_is_resumed(hub: HubServer, cache: Path) -> None:
    partial = cache / "blobs" / f"{digests(WEIGHTS).sha256}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:70000])
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in hub.requests if request.path.startswith("/large/")] == [
        "bytes=70000-"
    ]
    assert not partial.exists()


def test_a_partial_file_that_is_too_long_is_downloaded_again(hub: HubServer, cache: Path) -> None:
    partial = cache / "blobs" / f"{digests(WEIGHTS).sha256}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS + b"!")
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("filename", "wrong"), [("model.safetensors", WEIGHTS[::-1]), ("config.json", CONFIG[::-1])]
)
def test_a_damaged_download_is_never_kept(hub: HubServer, cache: Path, filename: str, wrong: bytes) -> None:
    hub.corrupt(filename, wrong)
    assert f"{filename} arrived damaged" in failure(DownloadError, "small", filename)
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    hub.heal()
    assert resolve_model("small").local_path(filename).read_bytes() == FILES[filename]


def test_a_damaged_partial_file_fails_the_checksum(hub: HubServer, cache: Path) -> None:
    partial = cache / "blobs" / f"{digests(WEIGHTS).sha256}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"?" * 5000)
    assert "arrived damaged" in failure(DownloadError, "small", "model.safetensors")
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS


def test_a_body_of_the_wrong_length_is_an_error(hub: HubServer) -> None:
    hub.corrupt("model.safetensors", WEIGHTS + b"!")
    assert "run the same command again" in failure(DownloadError, "small", "model.safetensors")
    hub.heal()
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS


# Without the Hub


def test_offline_the_cache_is_enough(hub: HubServer, offline: SimpleNamespace) -> None:
    path = resolve_model("small").local_path("config.json")
    hub.requests.clear()
    offline.start()
    source = resolve_model("small")
    assert source.files == {"config.json"}
    assert source.local_path("config.json") == path
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_if_the_hub_fails_the_cache_is_used(hub: HubServer, status: int) -> None:
    path = resolve_model("small").local_path("config.json")
    hub.fail(status)
    assert resolve_model("small").local_path("config.json") == path


def test_if_the_hub_is_unreachable_the_cache_is_used(hub: HubServer) -> None:
    path = resolve_model("small").local_path("config.json")
    hub.stop()
    assert resolve_model("small").local_path("config.json") == path


def test_a_file_that_only_the_cache_lacks_is_reported_as_such(hub: HubServer) -> None:
    resolve_model("small").local_path("config.json")
    hub.stop()
    message = failure(CheckpointError, "small", "model.safetensors")
    assert message.startswith(f"{REPO} (as cached; the Hub could not be reached)")


def test_a_pinned_commit_is_found_without_the_hub(hub: HubServer) -> None:
    commit = hub.commit(REPO)
    path = resolve_model("small").local_path("config.json")
    hub.stop()
    assert resolve_model("small", commit).local_path("config.json") == path


def test_main_is_found_without_the_hub_when_its_files_came_by_commit(hub: HubServer) -> None:
    path = resolve_model("small", hub.commit(REPO)).local_path("config.json")
    resolve_model("small").local_path("config.json")
    hub.stop()
    assert resolve_model("small").local_path("config.json") == path


def test_a_listing_alone_does_not_replace_what_works_offline(hub: HubServer) -> None:
    resolve_model("small").local_path("config.json")
    hub.repos[REPO]["config.json"] = b"newer"
    resolve_model("small")
    hub.stop()
    assert resolve_model("small").local_path("config.json").read_bytes() == CONFIG


def test_offline_with_an_empty_cache_says_why(hub: HubServer, offline: SimpleNamespace) -> None:
    offline.start()
    message = failure(DownloadError, "small")
    assert REPO in message
    assert "HF_HUB_OFFLINE" in message
    assert "or use the model 'demo', which needs no download" in message


def test_the_demo_model_needs_neither_hub_nor_cache(hub: HubServer, offline: SimpleNamespace) -> None:
    offline.start()
    source = resolve_model("demo")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= source.files
    assert source.local_path("config.json").is_file()
    assert hub.requests == []
    with pytest.raises(UsageError, match="no revision"):
        resolve_model("demo", revision="main")


def test_unreachable_with_an_empty_cache_says_what_to_do(hub: HubServer) -> None:
    hub.stop()
    message = failure(DownloadError, "small")
    assert message.startswith(f"{REPO} is not in the cache, and the Hub ({hub.url}) can't be reached (")
    assert "check the network, give a local folder, or use the model 'demo'" in message


def test_a_hub_that_does_not_answer_times_out(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiocraft_mlx.checkpoints.model_files._TIMEOUT", 0.05)
    hub.delay("/api/", 0.3)
    assert "can't be reached" in failure(DownloadError, "small")
    assert len(hub.requests) == 1


# Answers of the Hub


def test_an_unknown_repository_lists_the_short_names(hub: HubServer) -> None:
    message = failure(CheckpointError, "facebook/smal")
    known = ", ".join([*SHORT_NAMES, "demo"])
    assert message == f"no model 'facebook/smal' on the Hub ({hub.url}); known short names: {known}"


def test_401_may_mean_a_missing_or_a_private_model(hub: HubServer) -> None:
    hub.fail(401, message="Invalid username or password.")
    message = failure(CheckpointError, "somebody/x")
    assert "no model 'somebody/x'" in message
    assert "or a private one (then log in with `hf auth login`" in message


def test_an_unknown_revision_is_named(hub: HubServer) -> None:
    assert f"{REPO} has no revision 'v9'" in failure(CheckpointError, "small", revision="v9")


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (401, "GatedRepo", "Access to model is restricted"),
        (403, "GatedRepo", "Access to model is restricted"),
        (403, "", "Forbidden"),
        (401, "", "Invalid credentials in Authorization header"),
    ],
)
def test_denied_access_asks_to_log_in(hub: HubServer, status: int, code: str, reason: str) -> None:
    hub.fail(status, code, reason, where="/resolve/")
    message = failure(DownloadError, "small", "config.json")
    assert message.startswith(f"{REPO}: config.json: the Hub denies access ({status})")
    assert "hf auth login" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("where", ["/api/", "/resolve/", "/large/"])
@pytest.mark.parametrize("status", [500, 503])
def test_a_server_error_is_not_retried(hub: HubServer, status: int, where: str) -> None:
    hub.fail(status, where=where)
    assert f"the Hub answers with error {status}" in failure(DownloadError, "small", "model.safetensors")
    assert len(hub.requests) <= 4


@pytest.mark.parametrize("revision", ["../..", "/"])
def test_a_revision_does_not_lead_out_of_the_cache(hub: HubServer, revision: str) -> None:
    resolve_model("small").local_path("config.json")
    assert "no revision" in failure(CheckpointError, "small", revision=revision)


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "a/../../b", "..", "a\\..\\b"])
def test_a_listed_file_does_not_lead_out_of_the_cache(hub: HubServer, cache: Path, name: str) -> None:
    hub.repos[REPO][name] = b"!"
    assert "doesn't answer like the Hub" in failure(DownloadError, "small", name)
    assert not cache.exists()


def test_a_file_that_was_removed_since_it_was_listed_is_named(hub: HubServer) -> None:
    hub.fail(404, "EntryNotFound", where="/resolve/")
    assert f"{REPO}: config.json: this file is no longer on the Hub" in failure(
        CheckpointError, "small", "config.json"
    )


def test_a_login_page_is_not_mistaken_for_the_hub(hub: HubServer) -> None:
    hub.fail(200)
    assert "doesn't answer like the Hub" in failure(DownloadError, "small")


# Disks


def test_a_full_disk_is_named_with_the_cache(hub: HubServer, cache: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    partial = cache / "blobs" / f"{digests(WEIGHTS).sha256}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    message = failure(DownloadError, "small", "model.safetensors")
    assert f"no space left in the cache {cache.parent}" in message


def test_a_cache_that_cannot_be_written_is_named(hub: HubServer, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    message = failure(DownloadError, "small", "config.json")
    assert f"the cache {cache.parent} can't be used ({os.strerror(errno.ENOTDIR)}" in message
    assert "HF_HOME" in message


def test_a_cache_that_is_complete_may_be_read_only(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve_model("small", hub.commit(REPO)).local_path("config.json")

    def refuse(self: Path, text: str) -> None:
        raise PermissionError(errno.EACCES, "read-only", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    assert resolve_model("small").local_path("config.json") == path


# The environment


def in_a_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = {**kept, "NO_PROXY": "*", **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


def test_the_environment_of_huggingface_hub_is_respected(tmp_path: Path) -> None:
    code = (
        "from audiocraft_mlx.checkpoints.model_files import resolve_model;"
        "print(resolve_model('t5-base').local_path('config.json'))"
    )
    with HubServer({"t5-base": {"config.json": b"{}"}}) as hub:
        done = in_a_new_process(code, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path))
        again = in_a_new_process(code, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
        assert hub.fetched == ["t5-base/config.json"]
    assert done.stderr == ""
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "hub")
    assert again.stdout == done.stdout


def test_heavy_packages_are_not_imported_before_they_are_needed() -> None:
    code = (
        "import sys, audiocraft_mlx.checkpoints.model_files;"
        "print(sorted({'huggingface_hub', 'httpx2', 'mlx', 'numpy', 'tqdm'} & set(sys.modules)))"
    )
    assert in_a_new_process(code).stdout == "[]\n"


def test_a_server_that_never_answers_times_out(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listening socket without a server accepts connections and never answers."""
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("audiocraft_mlx.checkpoints.model_files._TIMEOUT", 0.05)
        assert "can't be reached" in failure(DownloadError, "small")


# Proxies and certificates


PROXIES = [f"{scheme}_proxy" for scheme in ("all", "http", "https")]
PROXIES += [name.upper() for name in PROXIES]
PASSWORD = "secret-password"


@pytest.fixture
def connect_as(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function: the next connection is made with these environment variables."""
    from huggingface_hub import close_session

    def set_environment(**variables: str) -> None:
        for name in (*PROXIES, "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        close_session()

    yield set_environment
    monkeypatch.undo()
    close_session()


UNUSABLE = [
    ({"ALL_PROXY": f"socks5://me:{PASSWORD}@127.0.0.1:9"}, "ALL_PROXY"),
    ({"https_proxy": "socks5h://127.0.0.1:9"}, "https_proxy"),
    ({"HTTPS_PROXY": f"foo://me:{PASSWORD}@127.0.0.1:9"}, "HTTPS_PROXY"),
    ({"HTTP_PROXY": "http://127.0.0.1:port"}, "HTTP_PROXY"),
    ({"SSL_CERT_FILE": "/no/such.pem"}, "SSL_CERT_FILE"),
    ({"SSL_CERT_FILE": __file__}, "SSL_CERT_FILE"),
]


@pytest.mark.parametrize(("variables", "named"), UNUSABLE)
def test_a_proxy_or_certificate_that_cannot_be_used_is_named(
    hub: HubServer,
    connect_as: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    named: str,
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    connect_as(**variables)
    message = failure(DownloadError, "small")
    assert named in message
    assert "unset" in message
    assert PASSWORD not in message
    if "socks" in str(variables):
        assert "-m pip install socksio" in message
    if "/no/such.pem" in str(variables):
        assert "/no/such.pem" in message
        assert "cache" not in message


@pytest.mark.parametrize("variables", [variables for variables, _ in UNUSABLE])
def test_with_a_proxy_that_cannot_be_used_the_cache_serves(
    hub: HubServer,
    connect_as: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
) -> None:
    path = resolve_model("small").local_path("config.json")
    monkeypatch.setitem(sys.modules, "socksio", None)
    connect_as(**variables)
    assert resolve_model("small").local_path("config.json") == path


def test_offline_no_client_is_made(
    hub: HubServer, offline: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client looks at proxies, certificates and the token."""
    import huggingface_hub
    from huggingface_hub.utils import _headers, _http

    path = resolve_model("small").local_path("config.json")
    offline.start()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("offline, a client or its headers were made")

    monkeypatch.setattr(_http, "get_session", refuse)
    monkeypatch.setattr(_headers, "get_token", refuse)
    monkeypatch.setattr(huggingface_hub, "get_session", refuse)
    source = resolve_model("small")
    assert source.local_path("config.json") == path
    assert "HF_HUB_OFFLINE" in failure(DownloadError, "medium")


@pytest.mark.parametrize("endpoint", ["huggingface.co", "localhost:1", "http://", "http://x:port", "ftp://x"])
def test_an_endpoint_that_is_no_url_is_named(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    from huggingface_hub import constants

    path = resolve_model("small").local_path("config.json")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    message = failure(DownloadError, "facebook/other")
    assert f"HF_ENDPOINT is {endpoint!r}, not a URL" in message
    assert resolve_model("small").local_path("config.json") == path


PASSWORDS = [
    ("http://me:{}@127.0.0.1:9", "http://127.0.0.1:9"),
    ("https://me:{}@127.0.0.1:9/sub", "https://127.0.0.1:9/sub"),
    ("http://me:x/{}@127.0.0.1:9", "127.0.0.1:9"),
    ("http://me:{}@127.0.0.1:port", "'http://127.0.0.1:port', not a URL"),
    ("me:{}@127.0.0.1:9", "'127.0.0.1:9', not a URL"),
    ("http://me:{}@[::1", "'http://[::1', not a URL"),
    ("http://[::1", "'http://[::1', not a URL"),
]


@pytest.mark.parametrize(("endpoint", "expected"), PASSWORDS)
def test_a_password_in_hf_endpoint_is_never_printed(tmp_path: Path, endpoint: str, expected: str) -> None:
    """In processes of their own: the library reads its environment once."""
    variables = {"HF_ENDPOINT": endpoint.format(PASSWORD), "HF_HOME": str(tmp_path)}
    code = "from audiocraft_mlx.cli.generate import main; main(['x', '-m', 'a/b', '-o', 'x.wav'])"
    output = in_a_new_process(code, **variables).stderr
    assert output.startswith("musicgen-mlx: error: ")
    assert PASSWORD not in output
    assert expected in output
    assert "HF_ENDPOINT is" in output or "can't be reached" in output

    code = (
        "from audiocraft_mlx.doctor import hub_facts, privacy, report\n"
        "print({name: privacy.redact(value) for name, value in report.settings().items()})\n"
        "for check in (hub_facts.cache, hub_facts.hub):\n"
        "    try: print(check())\n"
        "    except Exception as error: print(error)\n"
    )
    done = in_a_new_process(code, **variables)
    assert "HF_ENDPOINT" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr


def test_a_password_in_the_url_of_a_model_is_never_printed(hub: HubServer) -> None:
    for url in (
        f"https://me:{PASSWORD}@example.com/a/b",
        f"https://me:{PASSWORD}@huggingface.co/datasets/a/b",
    ):
        assert PASSWORD not in failure(UsageError, url)


# Parts of models


T5_FILES = [("config.json",), ("model.safetensors", "pytorch_model.bin")]


def test_of_two_repositories_with_the_same_files_the_cached_one_is_taken(hub: HubServer) -> None:
    twin = {"config.json": b"{}", "pytorch_model.bin": b"weights"}
    hub.repos |= {"google-t5/t5-base": twin, "t5-base": dict(twin)}
    for name in twin:
        resolve_model("google-t5/t5-base").local_path(name)
    hub.requests.clear()
    found = resolve_part("t5-base", T5_FILES)
    assert found.local_path("pytorch_model.bin").read_bytes() == b"weights"
    assert hub.fetched == []


def test_a_part_that_the_cache_lacks_is_downloaded_under_its_own_name(hub: HubServer) -> None:
    hub.repos["t5-base"] |= {"pytorch_model.bin": b"weights"}
    resolve_part("t5-base", T5_FILES).local_path("pytorch_model.bin")
    assert hub.fetched == ["t5-base/pytorch_model.bin"]


def test_a_part_of_which_the_cache_has_some_files_is_not_in_the_cache(
    hub: HubServer, offline: SimpleNamespace
) -> None:
    resolve_model("t5-base").local_path("config.json")
    offline.start()
    with pytest.raises(DownloadError, match="t5-base is not in the cache"):
        resolve_part("t5-base", T5_FILES)


# Permissions


@pytest.fixture
def reachable() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


def denied(kind: type[MusicGenError], path: Path, name: str, filename: str | None = None) -> str:
    with unprivileged():
        message = failure(kind, name, filename)
    assert f"permission denied: {path};" in message
    return message


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o300])
def test_a_folder_that_may_not_be_read_is_named(reachable: Path, mode: int) -> None:
    folder = reachable / "model"
    with unprivileged():
        folder.mkdir()
    (folder / "config.json").write_text("{}")
    folder.chmod(mode)
    if mode == 0o600:  # its files can be listed, but not opened
        denied(CheckpointError, folder / "config.json", str(folder), "config.json")
    else:
        denied(CheckpointError, folder, str(folder))


def test_a_folder_inside_of_one_that_may_not_be_entered_is_named(reachable: Path) -> None:
    (reachable / "closed" / "model").mkdir(parents=True)
    (reachable / "closed").chmod(0o600)
    denied(CheckpointError, reachable / "closed" / "model", str(reachable / "closed" / "model"))


def test_a_relative_name_is_a_repository_where_the_current_folder_may_not_be_entered(
    hub: HubServer, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(reachable / "token"))
    resolve_model("t5-base")  # what is imported may be in folders that are closed to others
    (reachable / "closed").mkdir()
    monkeypatch.chdir(reachable / "closed")
    (reachable / "closed").chmod(0o000)
    with unprivileged():
        assert resolve_model(REPO).source_repo == REPO


def test_a_file_that_may_not_be_read_is_named(reachable: Path) -> None:
    (reachable / "config.json").write_text("{}")
    (reachable / "config.json").chmod(0o000)
    denied(CheckpointError, reachable / "config.json", str(reachable), "config.json")


def test_a_subfolder_that_may_not_be_read_does_not_matter(reachable: Path) -> None:
    (reachable / "private").mkdir()
    (reachable / "private" / "x").touch()
    (reachable / "config.json").write_text("{}")
    (reachable / "private").chmod(0o000)
    with unprivileged():
        assert resolve_model(str(reachable)).local_path("config.json") == reachable / "config.json"


@pytest.mark.parametrize("closed", ["htdemucs.th", "."])
def test_weights_for_source_separation_that_may_not_be_read_are_named(
    reachable: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    path = reachable / "folder" / "htdemucs.th"
    path.parent.mkdir()
    path.touch()
    (path.parent / closed).chmod(0o000)
    monkeypatch.setenv("MUSICGEN_MLX_DEMUCS", str(path))
    with unprivileged(), pytest.raises(CheckpointError) as caught:
        load_htdemucs()
    assert str(caught.value).startswith(f"permission denied: {path};")


@pytest.mark.parametrize("closed", ["", "refs", "refs/main", "snapshots", "blobs", "*blob"])
@pytest.mark.parametrize("online", [True, False])
def test_a_cache_that_may_not_be_read_is_named(
    hub: HubServer,
    offline: SimpleNamespace,
    reachable: Path,
    monkeypatch: pytest.MonkeyPatch,
    closed: str,
    online: bool,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(reachable / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(reachable / "token"))
    path = resolve_model("small").local_path("config.json")
    storage = reachable / "cache" / "models--facebook--musicgen-small"
    part = path.resolve() if closed == "*blob" else storage / closed
    part.chmod(0o000)
    if not online:
        offline.start()
    if online and closed.startswith("refs"):
        with unprivileged():
            assert resolve_model("small").local_path("config.json") == path
        return
    with unprivileged():
        message = failure(DownloadError, "small", "config.json")
    assert message.startswith((f"{REPO}: ", f"{REPO} (as cached"))
    assert f"permission denied: {storage}" in message or f"permission denied: {path.resolve()}" in message
    assert "HF_HOME" in message


def test_a_cache_that_may_not_be_written_is_named(
    hub: HubServer, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(reachable / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(reachable / "token"))
    resolve_model("small").local_path("config.json")
    (reachable / "cache" / "models--facebook--musicgen-small" / "blobs").chmod(0o555)
    with unprivileged():
        message = failure(DownloadError, "small", "model.safetensors")
    assert "permission denied: " in message
    assert "HF_HOME" in message


def test_a_name_too_long_for_a_folder_is_a_usage_error(hub: HubServer) -> None:
    assert ", ".join(SHORT_NAMES) in failure(UsageError, "x" * 300)


# What people give as a model's name


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/facebook/musicgen-small",
        "http://www.huggingface.co/facebook/musicgen-small/",
        "huggingface.co/facebook/musicgen-small",
        "https://hf.co/facebook/musicgen-small",
        "hf.co/facebook/musicgen-small",
        "https://huggingface.co/facebook/musicgen-small/tree/main",
        "https://huggingface.co/facebook/musicgen-small/blob/main/config.json?download=true#L1",
        "https://huggingface.co/facebook/musicgen-small/resolve/main/onnx/decoder.bin",
        "https://huggingface.co/facebook/musicgen-small.git",
        "https://huggingface.co/models/facebook/musicgen-small",
        "git@hf.co:facebook/musicgen-small",
        "hf://facebook/musicgen-small",
        "HTTPS://HuggingFace.co/facebook/musicgen-small",
        " https://huggingface.co/facebook/musicgen-small\n",
        "{hub}/facebook/musicgen-small",
    ],
)
def test_a_url_of_the_hub_means_its_repository(hub: HubServer, url: str) -> None:
    source = resolve_model(url.format(hub=hub.url))
    assert source.source_repo == REPO
    assert source.local_path("config.json").read_bytes() == CONFIG


def test_a_url_of_a_repository_without_an_owner(hub: HubServer) -> None:
    assert resolve_model("https://huggingface.co/t5-base/tree/main").source_repo == "t5-base"


def test_the_revision_in_a_url_is_used(hub: HubServer) -> None:
    url, commit = f"https://huggingface.co/{REPO}/tree", hub.commit(REPO)
    assert resolve_model(f"{url}/{commit}").local_path("config.json").parent.name == commit
    assert resolve_model(f"{url}/main", commit).source_repo == REPO
    assert "'v9'" in failure(CheckpointError, f"{url}/v9")
    assert "'v9'" in failure(UsageError, f"{url}/{commit}", revision="v9")
    assert "'v1/x'" in failure(CheckpointError, f"{url}/v1%2Fx")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://huggingface.co/spaces/facebook/MusicGen", "a space"),
        ("https://huggingface.co/datasets/google/MusicCaps", "a dataset"),
        ("https://huggingface.co/", "no repository"),
        ("https://huggingface.co", "no repository"),
        ("https://example.com/facebook/musicgen-small", "not of the Hub"),
        ("ftp://huggingface.co/facebook/musicgen-small", "not of the Hub"),
        ("https://[x/y", "not of the Hub"),
        ("https://huggingface.co/a--b/c", "no repository"),
    ],
)
def test_another_url_is_a_usage_error(hub: HubServer, url: str, words: str) -> None:
    message = failure(UsageError, url)
    assert words in message
    assert "facebook/musicgen-small" in message
    assert hub.requests == []


def test_a_folder_that_is_called_like_the_hub_is_a_folder(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("huggingface.co", REPO).mkdir(parents=True)
    Path("huggingface.co", REPO, "here").touch()
    assert resolve_model(f"huggingface.co/{REPO}").files == {"here"}


# Tokens


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "Invalid credentials in Authorization header"),
        (401, "Invalid username or password."),
        (401, 'User Access Token "mine" is expired'),
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_a_token_that_has_expired_is_named(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    message: str,
    from_file: bool,
    where: str,
) -> None:
    if from_file:
        (tmp_path / "token").write_text("hf_secret\n")
    else:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.fail(status, message=message, where=where)
    told = failure(DownloadError, "small", "config.json")
    assert "invalid or has expired" in told
    assert "a public model needs none" in told
    assert (str(tmp_path / "token") if from_file else "HF_TOKEN") in told
    assert "terms" not in told
    assert "hf_secret" not in told


@pytest.mark.parametrize("token", ["“hf_secret”", "hf_secret…", "hf_sec\u200bret", "hf_secret x", "hf_\x01"])
@pytest.mark.parametrize("from_file", [False, True])
def test_a_token_with_impossible_characters_is_named(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, from_file: bool
) -> None:
    if from_file:
        (tmp_path / "token").write_text(token, encoding="utf-8")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    told = failure(DownloadError, "small")
    assert (str(tmp_path / "token") if from_file else "HF_TOKEN") in told
    assert "can't be in a token" in told
    assert "hf_" not in told
    assert "HF_ENDPOINT" not in told
    assert hub.requests == []


def test_with_a_bad_token_the_cache_serves(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve_model("small").local_path("config.json")
    monkeypatch.setenv("HF_TOKEN", "“hf_secret”")
    assert resolve_model("small").local_path("config.json") == path


def test_a_token_that_is_not_sent_does_not_matter(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("HF_TOKEN", "“hf_secret”")
    assert resolve_model("small").local_path("config.json").read_bytes() == CONFIG


def test_a_token_file_that_may_not_be_read_is_named(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with reachable_folder() as folder:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        (folder / "token").write_text("hf_secret")
        (folder / "token").chmod(0o000)
        with unprivileged():
            assert f"permission denied: {folder / 'token'}" in failure(DownloadError, "small")


# Timeouts


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
@pytest.mark.parametrize("value", ["30s", "1.5", "ten", "", " ", "-1"])
def test_a_timeout_that_is_no_number_is_named(name: str, value: str) -> None:
    code = (
        "from audiocraft_mlx.checkpoints.model_files import resolve_model;"
        "from audiocraft_mlx.errors import *\n"
        "try: resolve_model('t5-base')\n"
        "except UsageError as error: print(error)"
    )
    with HubServer({"t5-base": {"config.json": b"{}"}}) as hub:
        done = in_a_new_process(code, HF_ENDPOINT=hub.url, **{name: value})
    assert done.stderr == ""
    assert done.stdout == f"{name} is {value!r}, not a number of seconds such as 30; correct or unset it\n"


# Servers that leave things out


def test_a_mirror_without_lengths_serves(hub: HubServer) -> None:
    hub.omit("Content-Length", "X-Linked-Size")
    for name, content in FILES.items():
        assert resolve_model("small").local_path(name).read_bytes() == content
    assert hub.fetched == [f"{REPO}/{name}" for name in FILES]


def test_a_mirror_that_does_not_name_the_commit_serves(hub: HubServer) -> None:
    hub.omit("X-Repo-Commit", "Link", "X-Xet-Hash")
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("length", [70000, len(WEIGHTS)])
def test_a_download_without_length_is_resumed(hub: HubServer, cache: Path, length: int) -> None:
    hub.omit("Content-Length", "X-Linked-Size")
    partial = cache / "blobs" / f"{digests(WEIGHTS).sha256}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:length])
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS
    ranges = [request.range for request in hub.requests if request.path.startswith("/large/")]
    assert ranges == [f"bytes={length}-"]


def test_a_download_without_length_that_is_cut_is_damaged(hub: HubServer, cache: Path) -> None:
    """Nothing but the checksum tells: the end of the connection is the end of the file."""
    hub.omit("Content-Length", "X-Linked-Size")
    hub.cut("/large/", after=5500, times=1)
    assert "arrived damaged" in failure(DownloadError, "small", "model.safetensors")
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("etag", ['"../../escaped"', '"a/b"', '".."', '""'])
def test_a_checksum_does_not_lead_out_of_the_cache(hub: HubServer, cache: Path, etag: str) -> None:
    hub.replace("X-Linked-Etag", etag)
    hub.replace("ETag", etag)
    assert "doesn't answer like the Hub" in failure(DownloadError, "small", "model.safetensors")
    assert not cache.exists()


def test_a_file_system_without_links_holds_a_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    path = resolve_model("small").local_path("model.safetensors")
    assert path.read_bytes() == WEIGHTS
    hub.stop()
    assert resolve_model("small").local_path("model.safetensors") == path


def test_a_link_to_a_blob_that_is_gone_is_replaced(hub: HubServer) -> None:
    path = resolve_model("small").local_path("model.safetensors")
    path.resolve().unlink()
    assert resolve_model("small").local_path("model.safetensors").read_bytes() == WEIGHTS


def test_a_certificate_that_is_not_trusted_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*args: object, **kwargs: object) -> None:
        raise huggingface_hub.errors.HTTPError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    message = failure(DownloadError, "small")
    assert "certificate" in message
    assert "SSL_CERT_FILE" in message
