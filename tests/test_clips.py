"""Requests as values, the events of their generation, and what a front makes of them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import audiocraft_mlx
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.cli.arguments import option_name
from audiocraft_mlx.clips.finishing import finish_audio
from audiocraft_mlx.clips.inputs import load_inputs
from audiocraft_mlx.clips.making import Chunk, Finished, Progress, Started, generate_clips
from audiocraft_mlx.clips.metadata import describe_request, read_metadata
from audiocraft_mlx.clips.requests import ClipRequest, FieldError, ModelOptions, OutputOptions
from audiocraft_mlx.clips.saving import save_clip
from audiocraft_mlx.clips.source import AudioInput, SourceClip
from audiocraft_mlx.errors import UsageError

from .fake_model import FakeModel, raiser

RATE = 32000
FULL = {
    "prompt": "piano",
    "seed": 7,
    "duration": 2.5,
    "top_k": 0,
    "top_p": 0.5,
    "temperature": 0.0,
    "cfg_coef": -1.0,
    "style": "style.wav",
    "style_coef": 5.0,
    "source": "song.wav",
    "prompt_seconds": 3.0,
}
FULL_OUTPUT = {
    "audio_format": "flac",
    "bit_depth": 24,
    "normalize": "loudness",
    "lufs": -20.0,
    "fade_out": 0.5,
    "stems": True,
}


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


# Requests


def test_a_request_goes_to_json_and_back() -> None:
    request = ClipRequest.from_dict(json.loads(json.dumps(FULL)))
    assert request.style == Path("style.wav")
    assert request.to_dict() == FULL
    assert ClipRequest.from_dict(request.to_dict()) == request
    output = OutputOptions.from_dict(FULL_OUTPUT)
    assert output.to_dict() == FULL_OUTPUT
    assert OutputOptions.from_dict(output.to_dict()) == output


def test_null_and_what_is_left_out_is_the_default() -> None:
    request = ClipRequest.from_dict({"prompt": "piano", "seed": 1, "top_k": None, "style": None})
    assert request == ClipRequest("piano", 1)
    assert request.duration == 8.0
    assert OutputOptions.from_dict({"lufs": None}) == OutputOptions()


def test_each_request_without_a_seed_draws_one() -> None:
    seeds = {ClipRequest("piano").seed for _ in range(5)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_numpy_numbers_become_numbers_of_json() -> None:
    request = ClipRequest("piano", seed=np.uint32(7), duration=np.float32(0.5), top_k=np.int64(3))
    assert json.loads(json.dumps(request.to_dict())) == {
        "prompt": "piano",
        "seed": 7,
        "duration": 0.5,
        "top_k": 3,
    }


def test_a_front_decides_what_the_name_of_an_audio_file_means() -> None:
    uploads = {"a1": AudioInput(np.ones((1, 10), np.float32), RATE, "tune.wav")}
    request = ClipRequest.from_dict({"melody": "a1", "seed": 1}, uploads.__getitem__)
    assert request.melody is uploads["a1"]
    assert load_inputs([request]) == [request]
    metadata = describe_request(request, OutputOptions(), ModelOptions("melody"))
    assert metadata.options == {"melody": "tune.wav"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "a request must be a JSON object, not list"),
        ("piano", "a request must be a JSON object, not str"),
        ({}, "the prompt is empty; say what to play"),
        ({"prompt": " \t"}, "the prompt is empty; say what to play"),
        ({"prompt": 3}, "prompt must be a string, not 3"),
        ({"prompt": "\udcff"}, "the prompt is not valid UTF-8"),
        ({"prompt": "piano", "tempo": 90}, "unknown key 'tempo'; known keys: prompt, seed, duration, top_k,"),
        ({"prompt": "piano", "a{b}": 1}, "unknown key 'a{b}'"),
        ({"prompt": "piano", 3: 1}, "unknown key 3"),
        ({"prompt": "piano", "seed": "7"}, "seed must be an integer from 0 to 4294967295, not '7'"),
        ({"prompt": "piano", "seed": True}, "seed must be an integer from 0 to 4294967295, not True"),
        ({"prompt": "piano", "seed": 2**32}, "seed must be an integer from 0 to 4294967295, not 4294967296"),
        (
            {"prompt": "piano", "duration": 0},
            "duration must be a number of seconds above 0 and below 1000000,",
        ),
        ({"prompt": "piano", "duration": 10**400}, "duration must be a number of seconds above 0"),
        ({"prompt": "piano", "duration": float("nan")}, "duration must be a number of seconds above 0"),
        ({"prompt": "piano", "duration": [8]}, "duration must be a number of seconds above 0"),
        ({"prompt": "piano", "top_k": 2.5}, "top_k must be an integer, 0 or more, not 2.5"),
        ({"prompt": "piano", "top_p": 1.5}, "top_p must be a number from 0 to 1, not 1.5"),
        ({"prompt": "piano", "temperature": -1}, "temperature must be a number, 0 or more, not -1"),
        ({"prompt": "piano", "cfg_coef": "3"}, "cfg_coef must be a number, not '3'"),
        ({"melody": 3}, "melody must be the name of an audio file, not 3"),
        ({"source": ""}, "source must be the name of an audio file, not ''"),
        ({"prompt": "a", "melody_separation": "off"}, "melody_separation needs melody"),
        ({"melody": "a", "melody_separation": 1}, "melody_separation must be one of auto, on, off, not 1"),
        ({"melody": "a", "style": "b"}, "melody and style: no model supports both; give one of them"),
        ({"prompt": "piano", "style_coef": 5}, "style_coef needs style"),
        ({"prompt": "piano", "prompt_seconds": 5}, "prompt_seconds needs source"),
    ],
    ids=repr,
)
def test_a_mistake_in_a_request_is_one_line_that_names_the_key(values: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        ClipRequest.from_dict(values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"audio_format": "aiff"}, "audio_format must be one of wav, flac, mp3, ogg, not 'aiff'"),
        ({"audio_format": ["wav"]}, "audio_format must be one of wav, flac, mp3, ogg, not ['wav']"),
        ({"bit_depth": 8}, "bit_depth must be 16, 24 or 32, not 8"),
        ({"audio_format": "flac", "bit_depth": 32}, "flac has 16 or 24 bits per sample"),
        ({"audio_format": "mp3", "bit_depth": 16}, "mp3 has no bit depth"),
        ({"normalize": "rms"}, "normalize must be one of none, peak, loudness, not 'rms'"),
        ({"lufs": -14}, "lufs needs normalize loudness"),
        ({"normalize": "loudness", "lufs": 3}, "lufs must be a number from -70 to 0, not 3"),
        ({"fade_out": 0}, "fade_out must be a number of seconds above 0, not 0"),
        ({"stems": 1}, "stems must be true or false, not 1"),
        ({"loud": True}, "unknown key 'loud'"),
    ],
    ids=repr,
)
def test_a_mistake_in_the_output_options_is_one_line(values: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        OutputOptions.from_dict(values)
    assert str(error.value).startswith(message)


def test_a_front_calls_the_fields_by_its_own_names() -> None:
    with pytest.raises(FieldError) as error:
        ClipRequest("piano", prompt_seconds=3)
    assert error.value.describe(option_name) == "--prompt-seconds needs --continue"
    with pytest.raises(FieldError) as error:
        ClipRequest(melody=Path("a.wav")).require_supported(frozenset({"text"}), "some{one}/model")
    assert error.value.describe(option_name).startswith("--melody: the model some{one}/model can't be")


# Events


def kinds(events: list[Any]) -> list[str]:
    return [
        f"{type(event).__name__} {event.index}"
        if isinstance(event, (Chunk, Finished))
        else type(event).__name__
        for event in events
    ]


def test_the_events_come_in_order(model: FakeModel) -> None:
    requests = [ClipRequest(prompt, seed, 0.3) for prompt, seed in (("a", 5), ("b", 9), ("c", 1))]
    events = list(generate_clips(model, requests, batch_size=2))
    batch = ["Started", *["Progress", "Chunk 0", "Chunk 1"] * 3, "Finished 0", "Finished 1"]
    assert kinds(events) == [*batch, "Started", *["Progress", "Chunk 2"] * 3, "Finished 2"]
    assert [event for event in events if isinstance(event, Progress)] == [
        Progress(done, 3, first) for first in (0, 2) for done in (1, 2, 3)
    ]
    started = [event.batch for event in events if isinstance(event, Started)]
    assert [[plan.request for plan in batch] for batch in started] == [requests[:2], requests[2:]]
    assert started[0][0].seconds == 0.3
    chunks = [event.audio for event in events if isinstance(event, Chunk) and event.index == 2]
    assert np.concatenate(chunks, axis=1).shape == (2, 9600)


def test_progress_is_called_after_each_step_and_may_cancel(model: FakeModel) -> None:
    steps: list[Progress] = []
    list(generate_clips(model, [ClipRequest("a", 1, 0.3)], on_progress=steps.append))
    assert steps == [Progress(1, 3), Progress(2, 3), Progress(3, 3)]
    events = generate_clips(model, [ClipRequest("a", 1, 0.3)], on_progress=raiser(UsageError("enough")))
    with pytest.raises(UsageError, match="enough"):
        list(events)
    assert model.closed == 2


def test_rows_have_their_own_seeds_and_parameters_in_one_batch(model: FakeModel) -> None:
    requests = [
        ClipRequest("a", 5, 0.3, temperature=0.5, cfg_coef=2.0),
        ClipRequest("b", 4294967295, 0.3, top_k=7),
    ]
    list(generate_clips(model, requests))
    assert (model.batches, model.prompts, model.seeds) == ([2], ["a", "b"], [5, 4294967295])
    params = {"duration": 0.3, "top_k": None, "top_p": None, "temperature": None, "cfg_coef": None}
    params["cfg_coef_beta"] = None
    assert model.params == [params | {"temperature": 0.5, "cfg_coef": 2.0}, params | {"top_k": 7}]


def test_clips_that_cannot_share_a_batch_do_not(model: FakeModel) -> None:
    model.condition_types = frozenset({"text", "style"})
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, RATE)).astype(np.float32)
    style, song = AudioInput(noise, RATE), SourceClip(noise, RATE)
    requests = [
        ClipRequest("a", 0, 0.3),
        ClipRequest("b", 1, 0.5),
        ClipRequest("c", 2, 0.3),
        ClipRequest("d", 3, 0.3, style=style),
        ClipRequest("e", 4, 0.3, source=song, prompt_seconds=0.2),
        ClipRequest("f", 5, 0.3, style=style, style_coef=5.0),
        ClipRequest("g", 6, 0.3, style=style, temperature=2.0),
    ]
    events = list(generate_clips(model, requests))
    batches = [[plan.index for plan in event.batch] for event in events if isinstance(event, Started)]
    assert batches == [[1], [0, 2], [3, 6], [4], [5]]  # the longest first
    assert sorted(event.index for event in events if isinstance(event, Finished)) == [0, 1, 2, 3, 4, 5, 6]


def test_what_a_model_cannot_do_is_refused_at_once(model: FakeModel) -> None:
    style = AudioInput(np.ones((1, RATE), np.float32), RATE)
    with pytest.raises(FieldError, match="style: this model can't be conditioned on a style"):
        generate_clips(model, [ClipRequest("a"), ClipRequest(style=style)])
    with pytest.raises(UsageError, match="duration must be at least one frame"):
        generate_clips(model, [ClipRequest("a"), ClipRequest("a", duration=0.001)])
    with pytest.raises(UsageError, match=r"none\.wav can't be read"):
        generate_clips(model, [ClipRequest("a", source=Path("none.wav"))])
    with pytest.raises(UsageError, match="batch_size must be an integer of at least 1"):
        generate_clips(model, [ClipRequest("a")], batch_size=0)
    assert model.prompts == []


def test_closing_cancels_and_what_was_generated_is_kept(model: FakeModel, tmp_path: Path) -> None:
    """As a server does it: each clip has a spool, and a client goes away."""
    request, output = ClipRequest("piano", 7, 0.3), OutputOptions("flac", fade_out=0.1)
    spool = AudioSpool(model.audio_channels, tmp_path / "a.flac")
    events = generate_clips(model, [request, ClipRequest("drums", 8, 0.3)], batch_size=1)
    for event in events:
        if isinstance(event, Chunk):
            spool.append(event.audio)
            if spool.samples >= 6400:
                break
    events.close()
    assert model.closed == 1
    assert model.prompts == ["piano"], "the next batch has not begun"
    assert list(events) == []
    metadata = describe_request(request, output, ModelOptions("small"))
    saved = save_clip(tmp_path / "a.flac", finish_audio(spool, model.sample_rate, output), metadata)
    spool.close()
    assert (saved.samples, saved.channels, saved.sample_rate) == (6400, 2, RATE)
    assert soundfile.info(saved.path).frames == 6400
    assert read_metadata(saved.path) == metadata
    assert str(saved) == f"{tmp_path / 'a.flac'}: stereo, 0.20 s, 32000 Hz"


def test_an_error_of_the_model_comes_out_and_closes_it(model: FakeModel) -> None:
    model.during = raiser(MemoryError())
    events = generate_clips(model, [ClipRequest("piano", 7, 0.3)])
    with pytest.raises(MemoryError):
        list(events)
    assert model.closed == 1


def test_a_file_that_several_requests_name_is_read_once(model: FakeModel, tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    soundfile.write(path, np.full(RATE, 0.25), RATE)
    requests = [ClipRequest("a", seed, 0.3, source=path) for seed in (1, 2)]
    first, second = load_inputs(requests)
    assert first.source is second.source
    assert isinstance(first.source, SourceClip)
    assert first.to_dict() == requests[0].to_dict()
    list(generate_clips(model, requests))
    one, other = model.condition_inputs["prompt"]
    assert one is other


# Layers


def test_clips_know_no_front() -> None:
    """They neither print nor parse arguments: a server calls the same functions as the command."""
    folder = Path(audiocraft_mlx.__file__).parent / "clips"
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Name):
                assert node.id not in ("print", "input"), f"{path.name}:{node.lineno}"
            for name in names:
                top = name.split(".")
                assert top[0] not in ("argparse", "sys", "tqdm", "sounddevice"), f"{path.name} imports {name}"
                assert top[:2] != ["audiocraft_mlx", "cli"], f"{path.name} imports {name}"


def test_requests_import_nothing_heavy() -> None:
    script = """
import sys
from audiocraft_mlx.clips.requests import ClipRequest, OutputOptions
ClipRequest.from_dict({"prompt": "piano", "style": "a.wav"})
OutputOptions.from_dict({"audio_format": "flac"})
print("heavy:", *sorted({"mlx", "numpy", "soundfile", "tqdm", "mutagen"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "heavy:\n"
