"""Prompts: too long ones, files of them, and many of them."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx import UsageError
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.cli import clip_files
from audiocraft_mlx.cli.arguments import GenerateClips, parse
from audiocraft_mlx.cli.clip_files import plan_files
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.making import Started, generate_clips
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.t5 import T5Encoder
from audiocraft_mlx.validation import MAX_PROMPT_CHARACTERS
from tests.fake_model import FakeModel, install


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    return install(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def text_conditioner() -> TextConditioner:
    return load("demo").text_conditioner


def prompts_of(path: Path) -> list[str]:
    command = parse(["--prompts", str(path)])
    assert isinstance(command, GenerateClips)
    return [request.prompt for request in command.requests]


@pytest.mark.parametrize("where", ["argument", "stdin", "file"])
@pytest.mark.parametrize("text", ["word " * 40_000, "ä" * 200_000, "日" * (MAX_PROMPT_CHARACTERS + 1)])
def test_a_file_as_a_prompt_is_one_line_before_the_model_is_loaded(
    fake: FakeModel,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    text: str,
) -> None:
    if where == "stdin":
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    Path("prompts.txt").write_text(f"a tune\n{text}\n")
    arguments = {"argument": [text], "stdin": ["-"], "file": ["--prompts", "prompts.txt"]}[where]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert len(err) < 300
    assert "10000" in err
    assert ("prompts.txt, line 2: " in err) == (where == "file")
    assert not fake.loaded


def test_an_endless_standard_input_is_not_read_to_its_end(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert 0 < size < 100_000
            return b"\0\xc3" * (size // 2)

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Endless()))
    assert main(["-"]) == 2
    assert "give at most 10000" in capsys.readouterr().err


def test_a_long_prompt_is_refused_from_python_too(text_conditioner: TextConditioner) -> None:
    longest = "a" * MAX_PROMPT_CHARACTERS
    ClipRequest(longest, 1)
    with pytest.raises(UsageError, match=r"the prompt has 10001 characters; give at most 10000"):
        ClipRequest(longest + "a", 1)
    model = MusicGen.get_pretrained("demo")
    with pytest.raises(UsageError, match=r"the prompt has 10001 characters"):
        model.generate(["rock", longest + "a"])


def test_beyond_what_the_text_encoder_was_trained_with_there_is_a_warning(
    text_conditioner: TextConditioner,
) -> None:
    fits = "a tune " * 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens, _ = text_conditioner.tokenize([fits])
    assert tokens.shape[1] <= 512
    per_word = tokens.shape[1] / 200
    long = "a tune " * int(300 / per_word)
    with pytest.warns(UserWarning, match="trained with up to 512") as caught:
        tokens, _ = text_conditioner.tokenize([fits, long])
    assert f"a prompt has {tokens.shape[1]} tokens" in str(caught[0].message)


@pytest.mark.filterwarnings("ignore:a prompt has")
def test_a_long_prompt_takes_the_memory_of_its_own_length_only(
    text_conditioner: TextConditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a tune " * 600, "a tune", None, "strings " * 8]
    alone = [text_conditioner.hidden_states([prompt])[0] for prompt in prompts]
    shapes = []
    encode = T5Encoder.__call__

    def noting(self: T5Encoder, tokens: mx.array, mask: mx.array) -> mx.array:
        shapes.append(tokens.shape)
        return encode(self, tokens, mask)

    monkeypatch.setattr(T5Encoder, "__call__", noting)
    together, mask = text_conditioner.hidden_states(prompts)
    assert shapes == [(1, states.shape[1]) for states in alone]
    assert mask.sum(axis=1).tolist() == [states.shape[1] for states in alone]
    for row, states in zip(np.array(together), alone, strict=True):
        assert np.allclose(row[: states.shape[1]], np.array(states[0]), atol=1e-5)
        assert not np.any(row[states.shape[1] :])


def test_a_prompt_of_too_many_tokens_is_refused_before_anything_is_made(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the tokenizer spells out, with many tokens for a character.
    monkeypatch.setattr(fake, "count_tokens", lambda prompt: 18 * len(prompt))
    assert main(["\ufdfa" * 230, "-d", "0.1"]) == 2
    assert "the prompt has 4140 tokens; give a shorter one, of at most 4096" in capsys.readouterr().err
    assert fake.batches == []
    assert main(["\ufdfa" * 220, "-d", "0.1"]) == 0


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\f", "\v", "\x1c", "\x1d", "\x1e", "\x85"])
def test_only_line_ends_end_a_line(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(f"a{separator}tune\nb\r\nc\rd{separator}\n{separator}\n#{separator}e\nf".encode())
    assert prompts_of(path) == [f"a{separator}tune", "b", "c", "d", "f"]


def test_the_longest_prompt_fits_into_a_file(tmp_path: Path) -> None:
    path, longest = tmp_path / "prompts.txt", "a" * MAX_PROMPT_CHARACTERS
    for end in ("\n", "\r\n", ""):
        path.write_bytes(f"\ufeff{longest}\n{longest}{end}".encode())
        assert prompts_of(path) == [longest] * 2


def test_a_hundred_thousand_prompts_start_at_once(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("prompts.txt").write_text("".join(f"tune {index}\n" for index in range(100_000)))
    command = parse(["--prompts", "prompts.txt", "-o", "tune.wav", "-d", "1"])
    assert isinstance(command, GenerateClips)
    assert len(command.requests) == 100_000
    Path("tune-000007.wav").touch()
    checked: list[Path] = []
    monkeypatch.setattr(clip_files, "check_writable", checked.append)
    files = plan_files(command)
    assert [file.path for file in files[:2]] == [Path("tune-000001.wav"), Path("tune-000002.wav")]
    # The folder, and the file that is replaced.
    assert checked == [Path("tune-000001.wav"), Path("tune-000007.wav")]
    made: list[dict[str, object]] = []
    make_params = fake.make_params
    monkeypatch.setattr(fake, "make_params", lambda **given: made.append(given) or make_params(**given))
    events = generate_clips(fake, command.requests, batch_size=4)
    started = next(events)
    assert isinstance(started, Started)
    assert [plan.request.prompt for plan in started.batch] == [f"tune {index}" for index in range(4)]
    assert len(made) == 1
    events.close()


def test_more_prompts_than_that_are_found_without_reading_them_all(
    fake: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"tune {index}\n" for index in range(50_001))
    Path("prompts.txt").write_bytes(lines.encode() + b"\n" * 50_000 + b"\xff\xff\n")
    assert main(["--prompts", "prompts.txt", "-n", "2"]) == 2
    assert "prompts.txt has prompts for more than 100000 clips; split it" in capsys.readouterr().err
    assert main(["--prompts", "prompts.txt"]) == 2
    assert "not valid UTF-8" in capsys.readouterr().err


def test_clips_of_one_call_with_other_parameters_keep_them(fake: FakeModel) -> None:
    requests = [ClipRequest("a", 1, duration, top_k=k) for duration in (0.1, 0.2) for k in (None, 5, 7)]
    for _ in generate_clips(fake, requests):
        pass
    assert [(row["duration"], row["top_k"]) for row in fake.params] == [
        (request.duration, request.top_k)
        for request in sorted(requests, key=lambda request: -request.duration)  # the longest first
    ]
    assert np.all([row["cfg_coef"] is None for row in fake.params])
