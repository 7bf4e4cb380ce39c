"""The server's service, from a request to files: with the demo model, and with one that can be held."""

from __future__ import annotations

import asyncio
import errno
import gc
import io
import json
import os
import re
import resource
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.formats import AudioFormat
from audiocraft_mlx.audio.read import decode_audio
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.audio.tags import AudioTags
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.checkpoints import demucs
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.codes import read_codes
from audiocraft_mlx.clips.defaults import MUSICGEN
from audiocraft_mlx.clips.metadata import GenerationMetadata, read_metadata
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.errors import CheckpointError, MusicGenError, OutputError, UsageError
from audiocraft_mlx.models import memory
from audiocraft_mlx.server import converting, engine, history, recipes, service
from audiocraft_mlx.server.answers import _of_ours
from audiocraft_mlx.server.schema import Event, Job, JobChange, JobRequest, Status
from audiocraft_mlx.server.service import (
    BusyError,
    InvalidFieldError,
    Limits,
    NotFoundError,
    ServerSettings,
    Service,
)
from audiocraft_mlx.server.store import AudioShape

from .fake_model import FakeModel, install, raiser
from .unprivileged import reachable_folder, unprivileged

RATE = 32000
SOON = 20.0
"""Seconds after which a test has failed."""


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, SOON))


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def open_service(folder: Path, start: bool = True, **values: Any) -> Service:
    limits = Limits(free_bytes=0, **values.pop("limits", {}))
    opened = Service(ServerSettings(folder, ModelOptions("demo"), limits=limits, **values))
    if start:
        opened.start()
    return opened


def submit(to: Service, client: str = "me", **values: Any) -> Job:
    values = {"prompt": "piano", "duration": 0.3, "seed": 7, **values}
    return to.submit(JobRequest.model_validate(values), client)


def made(by: Service, **values: Any) -> Job:
    job = run(by.wait(submit(by, **values).id))
    assert (job.status, job.error) == (Status.DONE, None)
    return job


def file(of: Service, job: Job, take: int = 0) -> np.ndarray:
    return read(of.clip_file(job.clips[take].id))


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


async def stream(of: Service, clip: str, start: int = 0) -> np.ndarray:
    audio = of.clip_audio(clip)
    blocks = [block async for block in audio.blocks(start)]
    return np.concatenate([np.zeros((audio.channels, 0), np.float32), *blocks], axis=1)


# With the demo model


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    opened = open_service(tmp_path_factory.mktemp("demo"))
    until(lambda: opened.models()[0].state == "loaded")  # not while a command loads it, too
    yield opened
    opened.close()


def test_the_samples_are_those_of_the_command(demo: Service, tmp_path: Path) -> None:
    options = ["-m", "demo", "-d", "1.5", "--seed", "4294967295"]
    assert main(["warm piano", *options, "-n", "2", "-o", str(tmp_path / "a.wav")]) == 0
    job = made(demo, prompt="warm piano", duration=1.5, seed=4294967295, takes=2)
    for take in (0, 1):
        assert np.array_equal(file(demo, job, take), read(tmp_path / f"a-{take + 1}.wav"))
        mine = read_metadata(demo.clip_file(job.clips[take].id))
        assert mine == read_metadata(tmp_path / f"a-{take + 1}.wav")
    assert job.command == "musicgen-mlx 'warm piano' --model demo --duration 1.5 --seed 4294967295 --takes 2"


def test_the_arrays_of_cancelled_jobs_are_free_at_once(demo: Service) -> None:
    def megabytes() -> float:
        """Free ones that MLX keeps for later are in its cache."""
        return (mx.get_active_memory() + mx.get_cache_memory()) / 2**20

    made(demo, duration=0.5)
    at_rest = megabytes()
    gc.disable()  # Python's own collection comes too late for gigabytes
    try:
        jobs = [submit(demo, client=f"c{number}", duration=8, seed=number) for number in range(4)]
        until(lambda: all((progress := demo.job(job.id).progress) and progress.done > 100 for job in jobs))
        for job in jobs:
            demo.delete(job.id)
        until(lambda: megabytes() < at_rest + 0.2)
    finally:
        gc.enable()


def test_a_clip_is_continued_from_its_codes_as_by_the_command(demo: Service, tmp_path: Path) -> None:
    pytest.importorskip("mutagen")
    whole = made(demo, duration=2.5, seed=3)
    first = made(demo, duration=1.5, seed=3)
    source = first.clips[0].id
    longer = made(demo, duration=1.0, seed=3, **{"continue": source})
    codes = [read_codes(demo.clip_file(job.clips[0].id)) for job in (whole, longer)]
    assert codes[0] is not None
    assert codes[1] is not None
    assert np.array_equal(codes[0].codes, codes[1].codes)
    options = ["-m", "demo", "-d", "1", "--seed", "3", "--continue", str(demo.clip_file(source))]
    assert main(["piano", *options, "-o", str(tmp_path / "a.wav")]) == 0
    assert np.array_equal(file(demo, longer), read(tmp_path / "a.wav"))
    metadata = read_metadata(demo.clip_file(longer.clips[0].id))
    assert metadata is not None
    assert metadata.duration == 1
    # Where only a part is kept, its audio is encoded.
    part = made(demo, duration=0.5, seed=3, continue_at=1.0, **{"continue": source})
    assert part.clips[0].duration == 1.5
    assert read_codes(demo.clip_file(part.clips[0].id)) is None


def test_an_upload_of_a_clip_is_continued_from_its_codes_too(demo: Service, tmp_path: Path) -> None:
    pytest.importorskip("mutagen")
    clip = demo.clip_file(made(demo, duration=1.0, seed=3).clips[0].id)
    (tmp_path / "x.bin").write_bytes(clip.read_bytes())
    source = demo.add_audio(tmp_path / "x.bin", "mine.wav").id
    for values, option in (
        ({"continue": source, "duration": 0.5}, ["--continue", str(clip), "-d", "0.5"]),
        (
            {"edit": source, "replace": "0.5-0.7", "candidates": 1},
            ["--edit", str(clip), "--replace", "0.5-0.7", "--candidates", "1"],
        ),
    ):
        job = made(demo, prompt="a bell", seed=4, **values)
        assert main(["a bell", "-m", "demo", "--seed", "4", *option, "-o", str(tmp_path / "a.wav")]) == 0
        assert np.array_equal(file(demo, job), read(tmp_path / "a.wav"))


def test_an_edit_is_that_of_the_command(demo: Service, tmp_path: Path) -> None:
    source = made(demo, duration=1.5, seed=3).clips[0].id
    job = made(demo, prompt="a bell", seed=4, edit=source, replace="0.5-0.8", candidates=2, ending="cut")
    assert (job.recipe.duration, job.clips[0].duration) == (pytest.approx(0.3), 1.5)
    # An id may begin with a dash.
    assert re.search(rf"--edit[ =]{re.escape(source)}\.wav --replace 0\.5-0\.8 --candidates 2", job.command)
    options = ["-m", "demo", "--seed", "4", "--edit", str(demo.clip_file(source)), "--replace", "0.5-0.8"]
    assert main(["a bell", *options, "--candidates", "2", "-o", str(tmp_path / "a.wav")]) == 0
    edited, before = file(demo, job), read(demo.clip_file(source))
    assert np.array_equal(edited, read(tmp_path / "a.wav"))
    assert np.array_equal(edited[:, :10000], before[:, :10000])
    assert not np.array_equal(edited, before)


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"replace": "1-2"}, "replace"),
        ({"candidates": 3}, "candidates"),
        ({"edit": "SOURCE"}, "replace"),
        ({"edit": "SOURCE", "replace": "2-1"}, "replace"),
        ({"edit": "SOURCE", "replace": "1-2", "continue": "SOURCE"}, "edit"),
        ({"edit": "SOURCE", "replace": "0.1-20"}, "replace"),
        ({"edit": "SOURCE", "replace": "0.1-0.2", "candidates": 0}, "candidates"),
        ({"edit": "SOURCE", "replace": "0.1-0.2", "prompt_seconds": 2.0}, "prompt_seconds"),
        ({"edit": "SOURCE", "replace": "0.1-0.101"}, "replace"),
    ],
)
def test_edits_that_are_refused(demo: Service, values: dict[str, object], param: str) -> None:
    source = demo.jobs().jobs[-1].clips[0].id
    given = {name: source if value == "SOURCE" else value for name, value in values.items()}
    with pytest.raises(InvalidFieldError) as refused:
        submit(demo, **given)
    assert refused.value.param == param


def test_what_is_wrong_with_an_edit_calls_it_so(demo: Service, tmp_path: Path) -> None:
    source = demo.jobs().jobs[-1].clips[0].id
    with pytest.raises(InvalidFieldError, match="loop and edit don't go together"):
        submit(demo, edit=source, replace="0.1-0.3", loop=True)
    tune = demo.add_audio(midi_file(tmp_path / "x.bin"), "tune.mid").id
    with pytest.raises(InvalidFieldError, match=r"edit: tune\.mid is MIDI") as refused:
        submit(demo, edit=tune, replace="0.1-0.3")
    assert refused.value.param == "edit"


def test_sections_and_a_negative_prompt_are_those_of_the_command(demo: Service, tmp_path: Path) -> None:
    options = ["--section", "0.2: fast sad guitar", "--section", "0.4~0.3: marimba", "--negative", "strings"]
    options += ["-m", "demo", "-d", "1", "--seed", "5"]
    assert main(["slow piano", *options, "-o", str(tmp_path / "a.wav")]) == 0
    sections = [
        {"start": 0.0, "text": "slow piano"},
        {"start": 0.2, "text": "fast sad guitar"},
        {"start": 0.4, "text": "marimba", "fade": 0.3},
    ]
    job = made(demo, prompt="", duration=1.0, seed=5, sections=sections, negative="strings")
    path = demo.clip_file(job.clips[0].id)
    assert np.array_equal(read(path), read(tmp_path / "a.wav"))
    # What begins at 0 is the prompt.
    assert job.recipe.prompt == "slow piano"
    assert [section.model_dump() for section in job.recipe.sections] == [
        {"start": 0.2, "text": "fast sad guitar", "fade": 0.0},
        {"start": 0.4, "text": "marimba", "fade": 0.3},
    ]
    metadata = read_metadata(path)
    assert metadata == read_metadata(tmp_path / "a.wav")
    assert metadata is not None
    assert recipes.request_of(metadata, "wav", "demo") == job.recipe
    assert [found.id for found in demo.jobs(query="marimba").jobs] == [job.id]


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"sections": [{"start": 9, "text": "a"}]}, "sections", "beyond the end of the clip"),
        ({"sections": [{"start": 0, "text": "a"}]}, "sections", "the prompt is what is played from 0 on"),
        ({"sections": [{"start": 0.1, "text": " "}]}, "sections", "one has no text"),
        ({"negative": "a", "cfg_coef": 1.0}, "negative", "negative can't work with cfg_coef 1"),
        ({"loop": True, "format": "mp3"}, "loop", "MP3 has silence at its ends; choose format wav"),
        ({"loop": True, "fade_out": 1.0}, "loop", "loop and fade_out: a loop's end goes on"),
        ({"loop": True, "bars": 4}, "bars", "bars need bpm"),
        ({"loop": True, "bars": 9999, "bpm": 10.0}, "duration", "seconds are too many"),
        ({"negative": "a" * 10_001}, "negative", "10001 characters are too many"),
        ({"sections": [{"start": 0.1, "text": "a" * 10_001}]}, "sections", "10001 characters are too many"),
    ],
)
def test_sections_and_negative_prompts_that_do_not_fit_name_their_field(
    demo: Service, values: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(service.InvalidFieldError, match=message) as error:
        submit(demo, **values)
    assert error.value.param == field


def test_loops_are_those_of_the_command_and_the_best_is_first(demo: Service, tmp_path: Path) -> None:
    values = {"loop": True, "bars": 1, "bpm": 240.0, "takes": 2}
    options = ["--loop", "--bars", "1", "--bpm", "240", "-n", "2", "-m", "demo", "--seed", "6"]
    assert main(["fast piano", *options, "-o", str(tmp_path / "a.wav")]) == 0
    job = submit(demo, prompt="fast piano", seed=6, **values)
    # What is heard while it is made has a lead-in and a lead-out.
    assert [clip.duration for clip in job.clips] == [4.0, 4.0]
    job = run(demo.wait(job.id))
    assert job.recipe.duration == 1.0
    assert (
        job.command == "musicgen-mlx 'fast piano' --model demo --seed 6 --loop --bars 1 --bpm 240 --takes 2"
    )
    assert [clip.seed for clip in job.clips] == [7, 6]
    # In the store, too.
    assert demo.jobs().jobs[0].clips == job.clips
    for take, clip in enumerate(job.clips):
        path = demo.clip_file(clip.id)
        assert clip.duration == 1.0
        assert np.array_equal(read(path), read(tmp_path / f"a-{take + 1}.wav"))
        metadata = read_metadata(path)
        assert metadata == read_metadata(tmp_path / f"a-{take + 1}.wav")
        assert metadata is not None
        assert metadata.seed == clip.seed
        same = {"seed": 6, "takes": 2}
        assert recipes.request_of(metadata, "wav", "demo").model_copy(update=same) == job.recipe


def test_everything_that_a_file_can_be_is_as_the_command_makes_it(demo: Service, tmp_path: Path) -> None:
    first = made(demo, duration=0.5, format="flac", bit_depth=24)
    source = demo.clip_file(first.clips[0].id)
    options = ["-m", "demo", "-d", "0.4", "--seed", "3", "--continue", str(source), "--prompt-seconds", "0.2"]
    options += ["--normalize", "peak", "--fade-out", "0.1", "--top-k", "50", "--temperature", "0.9"]
    assert main(["flute", *options, "-o", str(tmp_path / "b.flac")]) == 0
    job = made(
        demo,
        prompt="flute",
        duration=0.4,
        seed=3,
        prompt_seconds=0.2,
        normalize="peak",
        fade_out=0.1,
        top_k=50,
        temperature=0.9,
        format="flac",
        **{"continue": first.clips[0].id},
    )
    assert np.array_equal(file(demo, job), read(tmp_path / "b.flac"))
    assert soundfile.info(demo.clip_file(job.clips[0].id)).subtype == "PCM_24"
    assert job.clips[0].duration == pytest.approx(0.9)
    assert source.name in job.command
    assert str(source) not in job.command


def test_what_is_streamed_is_what_is_made_and_ends_in_any_case(demo: Service) -> None:
    async def work() -> None:
        request = JobRequest(prompt="piano", duration=1.5, seed=5, takes=2)
        job = await demo.wait_for_clips(demo.submit(request, "me").id)
        assert [clip.duration for clip in job.clips] == [1.5, 1.5]
        readers = [stream(demo, clip.id, start) for clip in job.clips for start in (0, 0, 40000)]
        audio = await asyncio.gather(*readers)
        job = await demo.wait(job.id)
        for take, clip in enumerate(job.clips):
            whole, again, late = audio[3 * take : 3 * take + 3]
            assert whole.shape == (1, int(1.5 * RATE))
            assert np.array_equal(whole, again)
            assert np.array_equal(whole[:, 40000:], late)
            assert np.abs(whole - file(demo, job, take)).max() <= 2**-15
            assert np.array_equal(await stream(demo, clip.id, 100), file(demo, job, take)[:, 100:])
            peaks = demo.peaks(clip.id)
            assert (peaks.per_second, len(peaks.peaks)) == (50, 75)
            assert max(peaks.peaks) == round(float(np.abs(file(demo, job, take)).max()) * 255)

    run(work())


def test_a_continuation_is_streamed_from_its_source_on(demo: Service) -> None:
    async def work() -> None:
        request = JobRequest(prompt="piano", duration=1.0, seed=5)
        first = await demo.wait(demo.submit(request, "me").id)
        values = {"prompt": "more", "duration": 0.5, "seed": 1, "continue_at": 0.5}
        values["continue"] = first.clips[0].id
        job = await demo.wait_for_clips(demo.submit(JobRequest.model_validate(values), "me").id)
        heard = await stream(demo, job.clips[0].id)
        job = await demo.wait(job.id)
        whole = file(demo, job)
        assert heard.shape == whole.shape == (1, RATE)
        assert np.array_equal(whole[:, : RATE // 2], file(demo, first)[:, : RATE // 2])
        assert np.abs(heard - whole).max() <= 2**-15

    run(work())


def test_a_clip_is_had_in_other_formats_with_its_tags(demo: Service) -> None:
    job = made(demo, duration=0.5)
    clip = job.clips[0].id
    own = demo.clip_file(clip)
    assert demo.clip_file(clip, "wav") == own
    for name in ("flac", "mp3", "ogg"):
        path = demo.clip_file(clip, name)
        assert (path.suffix, soundfile.info(path).frames) == (f".{name}", RATE // 2)
        assert read_metadata(path) == read_metadata(own)
        assert demo.clip_file(clip, name) == path
    assert np.array_equal(read(demo.clip_file(clip, "flac")), read(own))
    with pytest.raises(InvalidFieldError):
        demo.clip_file(clip, "../x")
    with pytest.raises(NotFoundError):
        demo.clip_file(clip, stem="bass")
    assert demo.delete(job.id).id == job.id
    with pytest.raises(NotFoundError):
        demo.clip_file(clip)
    with pytest.raises(NotFoundError):
        demo.clip_audio(clip)


def test_a_conversion_that_ends_after_its_job_is_removed(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    held.gate.set()
    job = made(held.service)

    def convert_what_is_open(source: Path, target: Path, audio_format: str) -> Path:
        held.service.delete(job.id)
        history.empty_trash(held.service._folder, held.service._store, time.time() + 1)
        target.write_bytes(b"converted")
        return target

    monkeypatch.setattr(converting, "convert_file", convert_what_is_open)
    with pytest.raises(NotFoundError):
        held.service.clip_file(job.clips[0].id, "flac")
    assert not any((held.folder / "converted").iterdir())


def test_stems_are_beside_the_clip(demo: Service, separator: None) -> None:
    job = made(demo, duration=0.5, stems=True, format="flac")
    stems = job.clips[0].stems
    assert {*stems} == {"drums", "bass", "other", "vocals"}
    assert stems["bass"] == f"/api/clips/{job.clips[0].id}/stems/bass"
    parts = [read(demo.clip_file(job.clips[0].id, stem=name)) for name in stems]
    assert all(part.shape == file(demo, job).shape for part in parts)
    assert demo.clip_file(job.clips[0].id, "wav", "bass").suffix == ".wav"


def midi_file(path: Path) -> Path:
    import mido

    track = mido.MidiTrack([mido.Message("note_on", note=67), mido.Message("note_off", note=67, time=480)])
    mido.MidiFile(tracks=[track]).save(path)
    return path


def test_midi_is_a_melody_and_nothing_else(demo: Service, tmp_path: Path) -> None:
    audio = demo.add_audio(midi_file(tmp_path / "x.bin"), "tune.mid")
    assert (audio.duration, audio.channels) == (0.5, 0)
    for field, param in (("continue", "continue"), ("style", "style")):
        with pytest.raises(InvalidFieldError, match=f"{field}: tune.mid is MIDI, which has notes") as error:
            submit(demo, **{field: audio.id})
        assert error.value.param == param
    with pytest.raises(InvalidFieldError, match="melody_separation is for audio, and the melody is MIDI"):
        submit(demo, melody=audio.id, melody_separation="off")
    (tmp_path / "x.bin").write_bytes(b"MThd")
    with pytest.raises(UsageError, match=r"^tune.mid is no MIDI file, or damaged \(it ends too early\)"):
        demo.add_audio(tmp_path / "x.bin", "tune.mid")


def test_a_recipe_with_notes_has_them_and_the_command(tmp_path: Path) -> None:
    shape = AudioShape.of_notes(0.5)
    file = recipes.AudioFile(midi_file(tmp_path / "upload"), "tune.mid", shape)
    request = JobRequest(melody="a" * 22, midi_track=1, takes=2)
    recipe = recipes.make_recipe(request, ModelOptions("melody"), MUSICGEN, lambda id, field: file)
    assert "--melody tune.mid --midi-track 1 " in recipe.command
    first, second = recipe.load()
    assert first.melody is second.melody
    assert (first.melody.name, first.melody.notes.duration) == ("tune.mid", 0.5)
    chords = JobRequest(prompt="jazz", chords="C Am", bpm=90, beats_per_bar=3)
    recipe = recipes.make_recipe(chords, ModelOptions("melody"), MUSICGEN, lambda id, field: file)
    assert "--chords 'C Am' --bpm 90 --beats-per-bar 3" in recipe.command
    again = recipes.request_of(recipe.metadata(recipe.clips[0]), "wav", "melody")
    assert (again.chords, again.bpm, again.beats_per_bar) == ("C Am", 90, 3)
    with pytest.raises(InvalidFieldError, match="chords: 'H' is no chord") as error:
        recipes.make_recipe(
            JobRequest(chords="H", bpm=90), ModelOptions("melody"), MUSICGEN, lambda id, field: file
        )
    assert error.value.param == "chords"


def test_uploads_are_melodies_and_sources_by_their_ids(demo: Service, tmp_path: Path) -> None:
    tone = 0.3 * np.sin(np.arange(22050) * 0.06)
    soundfile.write(tmp_path / "x.bin", np.stack([tone, tone], 1), 44100, format="FLAC")
    audio = demo.add_audio(tmp_path / "x.bin", "C:\\me\\my tone.flac")
    assert (audio.duration, audio.sample_rate, audio.channels) == (0.5, 44100, 2)
    job = made(demo, **{"continue": audio.id})
    assert (job.clips[0].sample_rate, job.clips[0].channels) == (44100, 2)
    assert "--continue 'my tone.flac'" in job.command
    with pytest.raises(InvalidFieldError, match="melody: the model demo can't") as error:
        submit(demo, melody=audio.id)
    assert error.value.param == "melody"
    with pytest.raises(NotFoundError, match=r"^continue: ") as missing:
        submit(demo, **{"continue": "a" * 22})
    assert (missing.value.param, _of_ours(missing.value).status_code) == ("continue", 404)
    assert json.loads(_of_ours(missing.value).body)["error"]["param"] == "continue"
    for content in (b"", b"no audio", b"RIFF"):
        (tmp_path / "y").write_bytes(content)
        with pytest.raises(UsageError, match="my file") as wrong:
            demo.add_audio(tmp_path / "y", "my file")
        assert str(tmp_path) not in str(wrong.value)


def test_an_upload_that_is_too_long_is_found_before_all_of_it_is_decoded(tmp_path: Path) -> None:
    # Silence in FLAC: an hour in some kilobytes.
    with soundfile.SoundFile(tmp_path / "bomb", "w", 44100, 1, format="FLAC") as bomb:
        for _ in range(360):
            bomb.write(np.zeros(441000, np.float32))
    assert (tmp_path / "bomb").stat().st_size < 10_000_000
    opened = open_service(tmp_path / "data", start=False, limits={"audio_seconds": 60.0})
    start = time.monotonic()
    with pytest.raises(UsageError, match="longer than 60 s"):
        opened.add_audio(tmp_path / "bomb")
    assert time.monotonic() - start < 3
    assert not list((tmp_path / "data" / "audio").iterdir())
    start = time.monotonic()
    assert opened.read_recipe(tmp_path / "bomb").recipe is None
    assert time.monotonic() - start < 0.5
    soundfile.write(tmp_path / "wide.wav", np.zeros((30 * 8000, 32)), 8000)
    with pytest.raises(UsageError, match="it is too long for 32 channels at 8000 Hz; give a part"):
        opened.add_audio(tmp_path / "wide.wav", "it")
    soundfile.write(tmp_path / "stereo.wav", np.zeros((30 * 8000, 2)), 8000)
    assert opened.add_audio(tmp_path / "stereo.wav").duration == 30
    assert len(list((tmp_path / "data" / "audio").iterdir())) == 1
    opened.close()


def test_a_file_says_how_it_was_made(demo: Service, tmp_path: Path) -> None:
    job = made(demo, format="ogg", temperature=0.8)
    found = demo.read_recipe(demo.clip_file(job.clips[0].id))
    assert (
        found.command
        == "musicgen-mlx piano --model demo --duration 0.3 --seed 7 --temperature 0.8 --format ogg"
    )
    assert found.recipe == job.recipe
    soundfile.write(tmp_path / "other.wav", np.zeros(100), 8000)
    other = demo.read_recipe(tmp_path / "other.wav")
    assert (other.recipe, other.command) == (None, None)
    copy = shutil.copy(demo.clip_file(job.clips[0].id), tmp_path / "upload")
    assert demo.read_recipe(Path(copy)) == found
    (tmp_path / "text").write_text("no audio")
    with pytest.raises(UsageError) as error:
        demo.read_recipe(tmp_path / "text")
    assert str(tmp_path) not in str(error.value)


def id3_bomb(name: str) -> bytes:
    """A tag of some megabytes that is a gigabyte when it is unpacked."""
    packer = zlib.compressobj(1)
    packed = packer.compress(b"\3" + name.encode() + b"\0")
    packed += b"".join(packer.compress(b"x" * (1 << 20)) for _ in range(1000)) + packer.flush()
    frame = b"TXXX" + synchsafe(len(packed) + 4) + b"\0\x09" + synchsafe(2**28 - 1) + packed
    # The name of our tags, without which nobody looks at them.
    frame += b"TXXX" + synchsafe(14) + b"\0\0\3MUSICGEN_MLX\0"
    return b"ID3\4\0\0" + synchsafe(len(frame)) + frame


def synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))


def test_tags_that_unpack_to_gigabytes_take_no_memory_here(tmp_path: Path) -> None:
    audio = io.BytesIO()
    soundfile.write(audio, np.zeros(RATE), RATE, format="MP3")
    (tmp_path / "bomb").write_bytes(id3_bomb("x") + audio.getvalue())
    opened = open_service(tmp_path / "data", start=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=r"^the file: its tags are too large or damaged$"):
        opened.read_recipe(tmp_path / "bomb")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert opened.add_audio(tmp_path / "bomb").duration == 1
    opened.close()


@pytest.mark.parametrize(
    ("values", "damaged"),
    [
        ({"duration": 10**400}, True),
        ({"temperature": 10**400}, True),
        ({"prompt": "\ud800"}, True),
        ({"options": {"normalize": "\ud800"}}, True),
        ({"options": {"lufs": 10**400}}, True),
        ({"model": "m" * 5000}, False),
        ({"model": "~nouser/x"}, False),
        ({"model": "\0"}, False),
    ],
)
def test_tags_that_were_made_up_are_an_error_of_the_file(
    demo: Service, tmp_path: Path, values: dict[str, Any], damaged: bool
) -> None:
    metadata = GenerationMetadata("piano", "demo", 1, 2.0)
    tags = replace(metadata, **values)
    data = AudioTags("", json.dumps({**vars(metadata), **values}))
    write_audio(tmp_path / "a.wav", np.full((1, 100), 0.1, np.float32), RATE, AudioFormat("wav", 16), data)
    if damaged:
        with pytest.raises(UsageError, match="the file: its tags are damaged"):
            demo.read_recipe(tmp_path / "a.wav")
    else:
        found = demo.read_recipe(tmp_path / "a.wav")
        assert found.recipe is not None
        assert (found.recipe.model, found.command) == (None, tags.to_command())


def test_the_models_are_listed(demo: Service) -> None:
    until(lambda: demo.models()[0].state == "loaded")
    models = {model.name: model for model in demo.models()}
    own = models["demo"]
    assert (own.default, own.sample_rate, own.channels) == (True, RATE, 1)
    assert (models["melody"].state, models["melody"].conditions) == ("to download", ["melody"])
    assert models["large"].gigabytes == 6.5
    assert demo.load_model("demo").state == "loaded"
    with pytest.raises(NotFoundError, match=r"^model: "):
        demo.load_model("/etc")
    with pytest.raises(UsageError, match=r"not on this machine.*--allow-downloads"):
        demo.load_model("small")
    with pytest.raises(InvalidFieldError) as error:
        submit(demo, model="facebook/musicgen-small")
    assert error.value.param == "model"
    with pytest.raises(NotFoundError):
        submit(demo, model="somebody/else")
    health = demo.health()
    assert (health.model, health.waiting, health.limits["takes"]) == ("demo", 0, 8)


# With a model that can be held


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    return install(monkeypatch, tmp_path)


@pytest.fixture
def held(fake: FakeModel, tmp_path: Path) -> Iterator[Held]:
    held = Held(fake, tmp_path / "data")
    yield held
    held.gate.set()
    held.service.close()


class Held:
    """A service whose model stops in the middle of a batch until `gate` is set."""

    def __init__(self, model: FakeModel, folder: Path, **values: Any) -> None:
        self.model, self.folder = model, folder
        self.gate, self.reached = threading.Event(), threading.Event()
        self._only_one = False
        model.during = self._hold
        self.service = open_service(folder, **values)

    def _hold(self) -> None:
        self.reached.set()
        assert self.gate.wait(SOON)
        if self._only_one:
            self._only_one = False
            self.gate.clear()

    def release_one(self) -> None:
        """Let this batch go on; the next one is held again."""
        self._only_one = True
        self.gate.set()

    def occupy(self, **values: Any) -> Job:
        """A job that is being made, and held."""
        self.reached.clear()
        job = submit(self.service, **values)
        assert self.reached.wait(SOON)
        return job


def test_a_waiting_job_is_cancelled_at_once(held: Held) -> None:
    running = held.occupy()
    waiting = submit(held.service, duration=0.5)
    assert (held.service.job(running.id).status, waiting.position) == (Status.RUNNING, 0)
    assert held.service.delete(waiting.id).status is Status.CANCELLED
    assert held.service.health().waiting == 0
    held.gate.set()
    assert run(held.service.wait(running.id)).status is Status.DONE
    assert held.service.job(waiting.id).status is Status.CANCELLED
    assert held.model.batches == [1]


def test_a_job_that_is_made_is_cancelled_at_its_next_step(held: Held) -> None:
    job = held.occupy()
    clip = held.service.job(job.id).clips[0].id
    assert held.service.delete(job.id).status is Status.CANCELLED
    with pytest.raises(NotFoundError):
        held.service.clip_audio(clip)
    held.gate.set()
    after = made(held.service, prompt="after")
    assert held.service.jobs().jobs[0].id == after.id
    assert not (held.folder / "clips" / job.id).exists()
    assert [*(held.folder / "making").iterdir()] == []


def test_a_job_that_is_done_is_not_cancelled(held: Held) -> None:
    held.release_one()
    job = made(held.service)
    assert held.service.cancel(job.id) is None
    assert held.service.job(job.id) == job
    running = held.occupy()
    cancelled = held.service.cancel(running.id)
    assert cancelled is not None
    assert cancelled.status is Status.CANCELLED
    assert held.service.cancel("nothing") is None


def test_of_a_batch_only_the_cancelled_job_is_dropped(held: Held) -> None:
    first = held.occupy(duration=0.5)
    shared = [submit(held.service, client=f"c{n}", seed=n) for n in range(3)]
    other = submit(held.service, duration=0.6)
    held.reached.clear()
    held.release_one()
    run(held.service.wait(first.id))
    assert held.reached.wait(SOON)
    held.gate.set()
    for job in (*shared, other):
        run(held.service.wait(job.id))
    assert held.model.batches == [1, 3, 1]
    assert held.model.seeds == [7, 0, 1, 2, 7]


def test_the_others_of_a_batch_go_on(held: Held) -> None:
    held.model.during = lambda: None
    held.model.before = held._hold
    first = held.occupy(duration=0.5)
    shared = [submit(held.service, seed=n) for n in range(3)]
    held.reached.clear()
    held.release_one()
    run(held.service.wait(first.id))
    until(lambda: held.service.job(shared[0].id).status is Status.RUNNING)
    assert held.service.delete(shared[1].id).status is Status.CANCELLED
    held.gate.set()
    assert [run(held.service.wait(job.id)).status for job in shared] == [
        Status.DONE,
        Status.CANCELLED,
        Status.DONE,
    ]
    assert sorted(os.listdir(held.folder / "clips")) == sorted([first.id, shared[0].id, shared[2].id])


def test_a_batch_stops_when_nobody_wants_it(held: Held) -> None:
    ends: list[int] = []
    held.model.before, held.model.during = held._hold, lambda: ends.append(1)
    first = held.occupy(duration=0.5)
    shared = [submit(held.service, seed=n) for n in range(2)]
    held.reached.clear()
    held.release_one()
    run(held.service.wait(first.id))
    assert held.reached.wait(SOON)
    for job in shared:
        held.service.delete(job.id)
    held.gate.set()
    until(lambda: held.model.closed == 2)
    assert held.model.batches == [1, 2]
    assert len(ends) == 1


def test_chunks_begin_where_those_of_the_command_do(
    fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = []
    stream = fake.stream_steps

    def stream_steps(*inputs: Any, **options: Any) -> Any:
        chunks.append((options["chunk_seconds"], options["first_chunk_seconds"]))
        return stream(*inputs, **options)

    monkeypatch.setattr(fake, "stream_steps", stream_steps)
    assert main(["piano", "-d", "0.3"]) == 0
    opened = open_service(tmp_path / "data")
    made(opened)
    opened.close()
    assert chunks == [(1.0, 0.04)] * 2


def test_takes_share_batches_as_far_as_memory_goes(
    fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "max_batch_size", lambda *_: 3)
    opened = open_service(tmp_path / "data")
    job = made(opened, takes=8)
    assert fake.batches == [3, 3, 2]
    assert fake.seeds == [clip.seed for clip in job.clips] == [*range(7, 15)]
    assert len({opened.clip_file(clip.id) for clip in job.clips}) == 8
    opened.close()


@pytest.mark.parametrize("size", [1, 4])
def test_only_the_sources_of_the_next_batch_are_decoded(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(memory, "max_batch_size", lambda *_: size)
    ids = []
    for number in range(6):
        samples = 8000 if size == 4 and number < 4 else 8000 + 100 * number
        soundfile.write(tmp_path / "a.wav", np.full(samples, 0.1), 8000)
        ids.append(held.service.add_audio(tmp_path / "a.wav").id)
    decoded, load = list[str](), recipes.Recipe.load

    def noting_load(recipe: recipes.Recipe) -> Any:
        decoded.extend(file.name for file in recipe.audio.values())
        return load(recipe)

    monkeypatch.setattr(recipes.Recipe, "load", noting_load)
    held.occupy()
    jobs = [submit(held.service, **{"continue": id}) for id in ids]
    held.gate.set()
    for job in jobs:
        assert run(held.service.wait(job.id)).status is Status.DONE
    assert len(decoded) == 6
    assert held.model.batches == ([1] * 7 if size == 1 else [1, 4, 1, 1])


def test_clients_take_turns_whatever_they_ask_for(held: Held) -> None:
    first = held.occupy(duration=0.5)
    for number in range(4):  # none of them may share a batch
        submit(held.service, "greedy", prompt=f"greedy{number}", duration=0.1 + number / 50)
    for number in range(2):
        submit(held.service, "modest", prompt=f"modest{number}", duration=0.2 + number / 50)
    last = submit(held.service, "new", prompt="new", duration=0.3)
    assert last.position == 2
    held.gate.set()
    until(lambda: held.service.health().waiting == 0)
    until(lambda: not any(job.status.is_live for job in held.service.jobs().jobs))
    assert held.model.prompts[1:] == ["greedy0", "modest0", "new", "greedy1", "modest1", "greedy2", "greedy3"]
    assert held.service.job(first.id).status is Status.DONE


def test_twenty_clients_with_two_hundred_jobs_lose_none(fake: FakeModel, tmp_path: Path) -> None:
    opened = open_service(tmp_path / "data")
    submitted: list[Job] = []

    def work(client: int) -> None:
        for number in range(10):
            submitted.append(
                submit(opened, f"c{client}", prompt=f"{client} {number}", duration=0.1, seed=client)
            )

    threads = [threading.Thread(target=work, args=[client]) for client in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job in submitted}) == 200

    async def wait() -> list[Job]:
        return await asyncio.gather(*(opened.wait(job.id) for job in submitted))

    assert {job.status for job in run(wait())} == {Status.DONE}
    listed, before = list[Job](), None
    while True:
        page = opened.jobs(before, 30)
        listed += page.jobs
        before = page.before
        if before is None:
            break
    assert {job.id for job in listed} == {job.id for job in submitted}
    created = [job.created for job in listed]
    assert created == sorted({*created}, reverse=True)
    assert all(opened.clip_file(job.clips[0].id).stat().st_size > 6000 for job in listed)
    opened.close()


def test_too_many_waiting_jobs_are_refused(fake: FakeModel, tmp_path: Path) -> None:
    held = Held(fake, tmp_path / "data", limits={"waiting": 4, "waiting_per_client": 3})
    held.occupy()
    for _ in range(3):
        submit(held.service, "greedy")
    for client, message in (("greedy", "3 of your jobs wait"), ("other", "")):
        if not message:
            submit(held.service, client)
            message = "4 jobs wait already"
        with pytest.raises(BusyError, match=message) as error:
            submit(held.service, client)
        assert 1 <= error.value.retry_after <= 3600
    assert len(held.service.jobs().jobs) == 5
    held.gate.set()
    held.service.close()


def test_a_clip_is_heard_before_it_is_done(held: Held) -> None:
    async def work() -> None:
        job = held.occupy(duration=0.3)
        clip = held.service.job(job.id).clips[0]
        heard = held.service.clip_audio(clip.id).blocks()
        first = await anext(heard)
        assert first.shape in ((2, RATE // 10), (2, RATE // 5))
        assert held.service.job(job.id).status is Status.RUNNING
        assert len(held.service.peaks(clip.id).peaks) == 10
        with pytest.raises(NotFoundError, match="isn't done yet"):
            held.service.clip_file(clip.id)
        late = held.service.clip_audio(clip.id)
        held.gate.set()
        await held.service.wait(job.id)
        # Slow readers, who come back after the job is done.
        rest = [block async for block in heard]
        assert first.shape[1] + sum(block.shape[1] for block in rest) == clip.duration * RATE
        assert np.array_equal(
            np.concatenate([first, *rest], axis=1), np.concatenate([b async for b in late.blocks()], axis=1)
        )

    run(work())


def test_a_listener_hears_the_end_of_a_cancelled_clip(held: Held) -> None:
    async def work() -> None:
        job = held.occupy(duration=0.3)
        clip = held.service.job(job.id).clips[0]
        heard = held.service.clip_audio(clip.id).blocks()
        threading.Timer(0.1, held.service.delete, [job.id]).start()
        assert sum([block.shape[1] async for block in heard]) == 2 * RATE // 10
        assert (await held.service.wait(job.id)).status is Status.CANCELLED

    run(work())


def test_what_happens_is_told(held: Held) -> None:
    async def work() -> None:
        events: list[Event] = []
        told = held.service.events()
        job = held.occupy()
        held.gate.set()
        await held.service.wait(job.id)
        held.service.change(job.id, JobChange(favourite=True))
        held.service.delete(job.id)
        held.service.restore(job.id)
        while [event.event for event in events[-2:]] != ["removed", "job"]:
            events.append(await anext(told))
        states = [event.data["status"] for event in events if event.event == "job"]
        assert (states[0], states[-1]) == ("queued", "done")
        assert "running" in states
        own = [event.data for event in events if event.event == "job"][-1]
        assert Job.model_validate(own) == held.service.job(job.id)
        assert "continue" in own["recipe"]
        progress = [event.data for event in events if event.event == "progress"]
        assert progress[-1]["progress"] == {"done": 3, "total": 3}
        assert {each["id"] for each in progress} == {job.id}
        peaks = [event.data for event in events if event.event == "peaks"]
        assert [each["start"] for each in peaks] == [0, 5, 10]
        assert [peak for each in peaks for peak in each["peaks"]] == held.service.peaks(job.clips[0].id).peaks
        assert events[-2].data == {"id": job.id}
        models = [event.data for event in events if event.event == "models"]
        assert models == [] or models[-1][0]["state"] == "loaded"

    # Clips are known at submission once the model is loaded.
    until(lambda: held.service.models()[0].state == "loaded")
    run(work())


@pytest.mark.parametrize("what", ["tell", "get", "page"])
def test_no_job_is_seen_as_it_was_before_its_end(
    held: Held, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    job = held.occupy()
    store, ended, seen = held.service._store, threading.Event(), list[Status]()
    name = "page" if what == "page" else "job"
    read, publish, me = getattr(store, name), held.service._events.publish, threading.current_thread()

    def read_slowly(*arguments: Any, **options: Any) -> Any:
        result = read(*arguments, **options)
        if threading.current_thread() is me:
            held.gate.set()
            ended.wait(0.3)  # the job ends here, unless it has to wait
        return result

    def noting_publish(kind: Any, data: Any) -> None:
        publish(kind, data)
        if kind == "job":
            seen.append(Status(data["status"]))
            if seen[-1] is Status.DONE:
                ended.set()

    monkeypatch.setattr(store, name, read_slowly)
    monkeypatch.setattr(held.service._events, "publish", noting_publish)
    if what == "tell":
        held.service._jobs.tell(job.id)
    else:
        view = held.service.job(job.id) if what == "get" else held.service.jobs().jobs[0]
        assert (view.status, view.progress is None) in ((Status.RUNNING, False), (Status.DONE, True))
        assert view.status is Status.DONE or not ended.is_set()
    assert ended.wait(SOON)
    assert seen[-1] is Status.DONE


def test_a_model_that_is_asked_for_again_is_loaded_once(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiocraft_mlx.server.models.cached_bytes", lambda repo: 10**6)
    held.occupy()
    for _ in range(5):
        assert held.service.load_model("small").state == "loading"
    assert [*held.service._engine._wanted] == ["small"]


def test_titles_and_favourites(held: Held) -> None:
    held.gate.set()
    job = made(held.service)
    assert held.service.change(job.id, JobChange(title="Mine", favourite=True)).title == "Mine"
    assert held.service.change(job.id, JobChange(favourite=False)).title == "Mine"
    assert held.service.jobs(query="mine").jobs[0].id == job.id
    assert held.service.jobs(favourite=True).jobs == []
    assert held.service.change(job.id, JobChange(title=None)).title is None
    for limit in (0, 201):
        with pytest.raises(InvalidFieldError):
            held.service.jobs(limit=limit)
    with pytest.raises(NotFoundError):
        held.service.change("a" * 22, JobChange(title="x"))


def test_the_trash_is_emptied_after_a_while(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    held.gate.set()
    job = made(held.service)
    folder = held.folder / "clips" / job.id
    held.service.delete(job.id)
    for call in (held.service.job, held.service.delete):
        with pytest.raises(NotFoundError):
            call(job.id)
    assert held.service.jobs().jobs == []
    assert folder.exists()
    assert held.service.restore(job.id) == job
    assert held.service.restore(job.id) == job
    held.service.delete(job.id)
    for module in (history, service):
        monkeypatch.setattr(module, "TRASH_SECONDS", 0.0)
    made(held.service, prompt="other")
    until(lambda: held.service._engine.wake() or not folder.exists())
    with pytest.raises(NotFoundError):
        held.service.restore(job.id)


def test_a_job_that_is_restored_as_the_trash_is_emptied_is_kept(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.gate.set()
    job, other = made(held.service), made(held.service)
    for each in (job, other):
        held.service.delete(each.id)
    store, folder = held.service._store, held.service._folder
    expired = store.expired_jobs

    def expired_and_restored(before: float, limit: int) -> Any:
        found = expired(before, limit)
        if found:
            held.service.restore(job.id)
        return found

    monkeypatch.setattr(store, "expired_jobs", expired_and_restored)
    history.empty_trash(folder, store, time.time() + 1)
    assert held.service.job(job.id) == job
    assert held.service.clip_file(job.clips[0].id).is_file()
    assert not (held.folder / "clips" / other.id).exists()
    with pytest.raises(NotFoundError):
        held.service.restore(other.id)


def test_a_large_trash_is_emptied_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_MOST_REMOVED", 2)
    opened = open_service(tmp_path, start=False)  # one that is started empties its trash itself
    try:
        for _ in range(3):
            opened._store.set_trashed(submit(opened).id, 1.0)
        for left in (1, 0):
            history.empty_trash(opened._folder, opened._store, 2.0)
            assert len(opened._store.expired_jobs(2.0, 9)) == left
    finally:
        opened.close()


@pytest.mark.parametrize("change", ["recipe = '{'", "recipe = '[]'"])
def test_a_database_with_damaged_rows_says_how_to_make_it_again(tmp_path: Path, change: str) -> None:
    opened = open_service(tmp_path, start=False)
    submit(opened)
    opened.close()
    with sqlite3.connect(tmp_path / "history.sqlite3") as connection:
        connection.execute(f"UPDATE jobs SET {change}")
    with pytest.raises(UsageError, match=r"^[^\n]*history\.sqlite3 is damaged [^\n]*--rebuild[^\n]*$"):
        open_service(tmp_path, start=False)
    history.rebuild(tmp_path)
    open_service(tmp_path, start=False).close()


def test_it_closes_within_a_second_whatever_is_made(held: Held) -> None:
    job = held.occupy()
    waiting = submit(held.service, duration=0.5)
    start = time.monotonic()
    held.service.close()
    assert time.monotonic() - start < 1
    held.gate.set()
    again = open_service(held.folder)
    states = {each.id: (each.status, each.error) for each in again.jobs().jobs}
    assert states[job.id] == (Status.FAILED, "the server stopped while it was made")
    assert run(again.wait(waiting.id)).status is Status.DONE
    again.close()


# Failures


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory; try a shorter duration"),
        (RuntimeError("[metal::malloc] Attempting to allocate"), "out of memory"),
        (CheckpointError("it has NaN weights"), "it has NaN weights"),
        (ZeroDivisionError("secret"), r"an unexpected error \(ZeroDivisionError\); the server's log"),
    ],
)
def test_a_failure_is_a_sentence_and_the_next_job_is_made(
    fake: FakeModel, tmp_path: Path, error: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_service(tmp_path / "data")
    fake.during = raiser(error)
    job = run(opened.wait(submit(opened, takes=2).id))
    assert job.status is Status.FAILED
    assert job.error is not None
    assert re.match(message, job.error)
    assert ("Traceback" in caplog.text) == isinstance(error, ZeroDivisionError)
    fake.during = lambda: None
    made(opened)
    assert not (tmp_path / "data" / "clips" / job.id).exists()
    opened.close()


def test_a_model_that_cannot_be_loaded_fails_its_jobs(
    fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = fake.get_pretrained
    monkeypatch.setattr(fake, "get_pretrained", raiser(CheckpointError("its weights are damaged")))
    opened = open_service(tmp_path / "data")
    job = run(opened.wait(submit(opened).id))
    assert (job.status, job.error) == (Status.FAILED, "its weights are damaged")
    assert opened.models()[0].error == "its weights are damaged"
    monkeypatch.setattr(fake, "get_pretrained", load)
    made(opened)
    assert opened.models()[0].error is None
    opened.close()


@pytest.mark.parametrize("where", ["spool", "file", "database"])
def test_a_full_disk_fails_the_job_and_not_the_server(
    held: Held, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    store = held.service._store
    sentence = "the server's disk is full; free some space"
    job = held.occupy()
    with monkeypatch.context() as patch:
        if where == "spool":

            def append(spool: AudioSpool, chunk: np.ndarray) -> None:
                raise OutputError("x can't be written") from full

            patch.setattr(AudioSpool, "append", append)
        elif where == "file":
            patch.setattr(os, "fsync", raiser(full))
        else:
            for method in ("set_done", "set_status"):
                patch.setattr(store, method, raiser(OutputError(sentence)))
        held.gate.set()
        job = run(held.service.wait(job.id))
        assert (job.status, job.error) == (Status.FAILED, sentence)
        assert held.service.jobs().jobs == [job]
        if where == "database":
            assert store.job(job.id).status is Status.RUNNING
    after = made(held.service)
    assert os.listdir(held.folder / "clips") == [after.id]
    until(lambda: bool(held.service._engine.wake()) or store.job(job.id).status is Status.FAILED)
    assert store.job(job.id).error == sentence


def test_a_full_disk_is_one_line_in_the_log_until_it_has_room(
    held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, sentence = held.service._store, "the server's disk is full; free some space"
    for _ in range(2):
        caplog.clear()
        job, waiting = held.occupy(), submit(held.service)
        with monkeypatch.context() as patch:
            for method in ("set_done", "set_status"):
                patch.setattr(store, method, raiser(OutputError(sentence)))
            held.gate.set()
            run(held.service.wait(job.id))
            run(held.service.wait(waiting.id))
            for _ in range(3):
                held.service._tidy()
        assert [record.getMessage() for record in caplog.records] == [sentence]
        held.service._tidy()
        assert store.job(job.id).status is Status.FAILED
        held.gate.clear()


def test_a_prompt_of_too_many_tokens_is_refused(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held.model, "count_tokens", lambda prompt: 18 * len(prompt))
    running = held.occupy()
    with pytest.raises(InvalidFieldError, match="the prompt has 5400 tokens") as raised:
        submit(held.service, prompt="\ufdfa" * 300)
    assert raised.value.param == "prompt"
    held.gate.set()
    run(held.service.wait(running.id))


def test_a_folder_that_is_removed_below_the_server_is_made_again(fake: FakeModel, tmp_path: Path) -> None:
    opened = open_service(tmp_path / "data")
    try:
        for name in ("clips", "audio", "making", "converted"):
            shutil.rmtree(tmp_path / "data" / name)
        job = made(opened)
        assert opened.clip_file(job.clips[0].id, "flac").is_file()
        assert opened.add_audio(opened.clip_file(job.clips[0].id)).duration == job.clips[0].duration
    finally:
        opened.close()


def test_a_file_that_is_damaged_below_the_server_is_said_without_its_place(
    fake: FakeModel, tmp_path: Path
) -> None:
    opened = open_service(tmp_path / "data")
    try:
        clip = made(opened).clips[0].id
        opened.clip_file(clip).write_bytes(b"garbage")
        with pytest.raises(NotFoundError, match="is damaged") as raised:
            opened.clip_file(clip, "mp3")
        assert str(tmp_path) not in str(raised.value)

        async def read() -> list[np.ndarray]:
            return [block async for block in opened.clip_audio(clip).blocks()]

        assert run(read()) == []
    finally:
        opened.close()


@pytest.mark.parametrize("what", ["clips", "audio", "making", "converted", "history.sqlite3", "."])
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_that_cant_be_written_is_said_at_the_start(what: str, mode: int) -> None:
    with reachable_folder() as root, unprivileged():
        folder = root / "data"
        open_service(folder, start=False).close()
        path = folder / what
        before = path.stat().st_mode
        path.chmod(mode)
        try:
            if mode and what in ("making", "converted"):  # they are made anew
                open_service(folder, start=False).close()
                return
            with pytest.raises(OutputError, match=r"can't be written.*(choose|check)"):
                open_service(folder, start=False)
        finally:
            path.chmod(before)


def test_an_almost_full_disk_takes_no_more_jobs(fake: FakeModel, tmp_path: Path) -> None:
    limits = Limits(free_bytes=2**62)
    opened = Service(ServerSettings(tmp_path / "data", ModelOptions("demo"), limits=limits))
    with pytest.raises(OutputError, match="disk is almost full"):
        submit(opened)
    assert opened.jobs().jobs == []
    opened.close()


def test_a_source_that_was_deleted_fails_the_job_that_waits_for_it(held: Held) -> None:
    held.release_one()
    first = made(held.service)
    held.occupy(duration=0.5)
    job = submit(held.service, **{"continue": first.clips[0].id})
    held.service._folder.remove_job(first.id, [])
    held.gate.set()
    job = run(held.service.wait(job.id))
    assert (job.status, job.error) == (
        Status.FAILED,
        f"continue: {first.clips[0].id}.wav was deleted",
    )


def test_a_job_that_cannot_be_finished_fails_alone(
    held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = engine.save_files

    def save_files(folder: Any, job: str, clip: Any, recipe: Any, *rest: Any) -> Any:
        if recipe.request.prompt == "bad":
            raise ZeroDivisionError
        return save(folder, job, clip, recipe, *rest)

    monkeypatch.setattr(engine, "save_files", save_files)
    first = held.occupy(duration=0.5)
    shared = [submit(held.service, prompt=prompt) for prompt in ("good", "bad", "fine")]
    held.gate.set()
    states = [run(held.service.wait(job.id)).status for job in (first, *shared)]
    assert states == [Status.DONE, Status.DONE, Status.FAILED, Status.DONE]
    assert held.model.batches == [1, 3]
    assert "Traceback" in caplog.text


def test_a_row_that_fails_its_batch_fails_its_job_alone(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = held.model.stream_steps

    def stream_steps(inputs: Any, params: Any, **options: Any) -> Any:
        chunks = stream(inputs, params, **options)
        yield next(chunks)
        if any(row.options["cfg_coef"] == 1e38 for row in params):
            raise MusicGenError("the logits are infinite")
        yield from chunks

    monkeypatch.setattr(held.model, "stream_steps", stream_steps)
    first = held.occupy()
    asked = ((3.0, 2), (1e38, 1), (2.0, 1))
    shared = [submit(held.service, cfg_coef=coef, takes=takes) for coef, takes in asked]
    held.gate.set()
    jobs = [run(held.service.wait(job.id)) for job in (first, *shared)]
    assert [job.status for job in jobs] == [Status.DONE, Status.DONE, Status.FAILED, Status.DONE]
    assert jobs[2].error == "the logits are infinite"
    assert held.model.batches == [1, 4, 2, 1, 1]
    # What had been made of them comes once.
    whole, peaks = (get(jobs[0].clips[0].id) for get in (held.service.clip_file, held.service.peaks))
    for clip in (*jobs[1].clips, *jobs[3].clips):
        made = decode_audio(held.service.clip_file(clip.id)).audio
        assert np.array_equal(made, decode_audio(whole).audio)
        assert held.service.peaks(clip.id) == peaks
    assert not (held.folder / "clips" / jobs[2].id).exists()


def test_stems_without_their_network_fail_before_anything_is_made(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demucs, "load_htdemucs", raiser(CheckpointError("no htdemucs here")))
    first = held.occupy(duration=0.5)
    shared = [submit(held.service, stems=stems) for stems in (True, False)]
    held.gate.set()
    jobs = [run(held.service.wait(job.id)) for job in (first, *shared)]
    assert [job.status for job in jobs] == [Status.DONE, Status.FAILED, Status.DONE]
    assert jobs[1].error == "no htdemucs here"
    assert held.model.batches == [1, 1]


def test_takes_that_were_made_go_when_their_job_is_cancelled_between_batches(
    fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "max_batch_size", lambda *values: 0 if values[4] else 1)
    gates = [threading.Event() for _ in range(3)]
    batches = iter(gates)

    def hold() -> None:
        assert next(batches).wait(SOON)

    fake.during = hold
    opened = open_service(tmp_path / "data", start=False)
    first = submit(opened, takes=2)
    other = submit(opened, "other", duration=0.5)
    opened.start()
    gates[0].set()
    until(lambda: opened.job(other.id).status is Status.RUNNING)
    assert opened.job(first.id).status is Status.RUNNING
    assert len(os.listdir(tmp_path / "data" / "clips" / first.id)) == 1
    assert opened.delete(first.id).status is Status.CANCELLED
    gates[1].set()
    assert run(opened.wait(other.id)).status is Status.DONE
    until(lambda: not (tmp_path / "data" / "clips" / first.id).exists())
    assert fake.batches == [1, 1]
    opened.close()


def test_a_clip_of_less_than_a_frame_is_refused(held: Held) -> None:
    held.gate.set()
    made(held.service)
    with pytest.raises(InvalidFieldError, match=r"at least one frame, 0\.02 s") as error:
        submit(held.service, duration=0.01)
    assert error.value.param == "duration"


def test_an_error_between_batches_is_survived(
    fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_service(tmp_path / "data")
    until(lambda: opened.models()[0].state == "loaded")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "WaitingClips", raiser(ZeroDivisionError()))
        job = submit(opened)
        job = run(opened.wait(job.id))
    assert (job.status, job.error) == (
        Status.FAILED,
        "an unexpected error (ZeroDivisionError); the server's log has more",
    )
    assert "Traceback" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(opened._engine, "_tidy", raiser(ZeroDivisionError()))
        until(lambda: bool(opened._engine.wake()) or "between two batches" in caplog.text)
    made(opened)
    opened.close()


# A new start


def test_history_and_queue_survive_a_restart(held: Held) -> None:
    held.release_one()
    done = made(held.service, takes=2)
    held.service.change(done.id, JobChange(title="T", favourite=True))
    done = held.service.job(done.id)
    held.occupy()
    waiting = [submit(held.service, client=f"c{n % 2}", prompt=f"w{n}", duration=0.4) for n in range(3)]
    held.service.close()
    again = open_service(held.folder, start=False)
    assert again.job(done.id) == done
    assert [again.job(job.id).position for job in waiting] == [0, 1, 2]
    held.gate.set()
    again.start()
    for job in waiting:
        assert run(again.wait(job.id)).status is Status.DONE
    again.close()


def test_the_history_is_rebuilt_from_the_files(held: Held) -> None:
    held.gate.set()
    first = made(held.service, takes=3, seed=2**32 - 2, format="flac", top_k=9)
    second = made(held.service, prompt="été", **{"continue": first.clips[1].id})
    peaks = held.service.peaks(first.clips[0].id)
    held.service.close()
    (held.folder / "history.sqlite3").write_bytes(b"damaged")
    (held.folder / "clips" / ("b" * 22)).mkdir()
    (held.folder / "clips" / ("b" * 22) / ("c" * 22 + ".wav")).write_bytes(b"foreign")
    (held.folder / "clips" / "mine").mkdir()
    with pytest.raises(UsageError, match="--rebuild"):
        open_service(held.folder)
    assert service.rebuild(held.folder) == 2
    assert (held.folder / "history.sqlite3.old").read_bytes() == b"damaged"
    again = open_service(held.folder)
    assert {job.id for job in again.jobs().jobs} == {first.id, second.id}
    rebuilt = again.job(first.id)
    assert (rebuilt.recipe, rebuilt.clips, rebuilt.status) == (first.recipe, first.clips, Status.DONE)
    assert again.job(second.id).recipe == second.recipe
    assert again.peaks(first.clips[0].id) == peaks
    assert file(again, rebuilt).shape == (2, RATE * 3 // 10)
    assert (held.folder / "clips" / "mine").exists()
    made(again, **{"continue": first.clips[0].id})
    again.close()


def test_a_rebuild_that_fails_leaves_the_history_as_it_was(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.gate.set()
    job = made(held.service)
    held.service.change(job.id, JobChange(favourite=True))
    held.service.close()
    with monkeypatch.context() as patch:
        patch.setattr(history, "tidy_at_start", raiser(OutputError("the disk is full")))
        for _ in range(2):
            with pytest.raises(OutputError):
                service.rebuild(held.folder)
    again = open_service(held.folder)
    assert again.job(job.id).favourite
    assert not [*held.folder.glob("*.old*"), *held.folder.glob("*.new*")]
    again.close()


def test_odd_folders_are_left_alone(
    held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held.gate.set()
    job, odd = made(held.service), made(held.service, prompt="odd")
    held.service.close()
    shutil.copytree(held.folder / "clips" / job.id, held.folder / "clips" / ("b" * 22))
    path = held.folder / "clips" / odd.id / f"{odd.clips[0].id}.wav"
    metadata = read_metadata(path)
    assert metadata is not None
    audio, rate = soundfile.read(path, always_2d=True)
    odd_metadata = replace(metadata, model="~nouser/x", prompt="\ud800")
    write_audio(path, audio.T.astype(np.float32), rate, AudioFormat("wav", 16), odd_metadata.to_tags())
    for file in held.folder.glob("history.sqlite3*"):
        file.unlink()
    again = open_service(held.folder)
    (found,) = again.jobs().jobs
    assert found.clips[0].id == job.clips[0].id
    assert path.exists()
    assert caplog.text.count("not in the history") == 2
    again.close()


def test_a_lost_database_loses_no_clips(held: Held) -> None:
    held.gate.set()
    job = made(held.service)
    held.service.close()
    for path in held.folder.glob("history.sqlite3*"):
        path.unlink()
    again = open_service(held.folder)
    assert again.job(job.id).clips == job.clips
    again.close()


def test_uploads_survive_a_rebuild(held: Held, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full((1000, 2), 0.1), 8000)
    audio = held.service.add_audio(tmp_path / "a.wav", "a.wav")
    os.utime(held.folder / "audio" / audio.id, (1, 1))
    (held.folder / "audio" / ("d" * 22)).write_bytes(b"no audio")
    held.gate.set()
    held.service.close()
    assert service.rebuild(held.folder) == 0
    again = open_service(held.folder)
    assert sorted(os.listdir(held.folder / "audio")) == sorted([audio.id, "d" * 22])
    job = made(again, **{"continue": audio.id})
    assert (job.clips[0].sample_rate, job.clips[0].channels) == (8000, 2)
    again.close()


def test_what_nobody_needs_is_removed_at_the_start(held: Held, tmp_path: Path) -> None:
    held.gate.set()
    soundfile.write(tmp_path / "a.wav", np.full(1000, 0.1), 8000)
    used, new, old = (held.service.add_audio(tmp_path / "a.wav") for _ in range(3))
    job = made(held.service, **{"continue": used.id})
    for audio in (used, old):
        held.service._store._select("UPDATE audio SET created = 1 WHERE id = ?", [audio.id])
    failed = made(held.service)
    held.service._store.set_status(failed.id, Status.RUNNING)
    held.service.close()
    parts = [held.folder / "clips" / job.id / f".musicgen-{'0' * 16}.part", held.folder / "making" / "x"]
    lost, arriving = (held.folder / "audio" / (letter * 22) for letter in "de")
    for path in (*parts, lost, arriving):
        path.write_bytes(b"")
    os.utime(lost, (1, 1))
    again = open_service(held.folder)
    assert sorted(os.listdir(held.folder / "audio")) == sorted([used.id, new.id, arriving.name])
    assert os.listdir(held.folder / "clips") == [job.id]
    assert not any(path.exists() for path in parts)
    assert again.job(failed.id).error == "the server stopped while it was made"
    again.close()


def test_a_second_server_is_refused(held: Held) -> None:
    with pytest.raises(UsageError, match="in use by another server"):
        open_service(held.folder)


def test_another_model_takes_the_place_of_the_least_recently_used(
    fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiocraft_mlx.server.models.cached_bytes", lambda repo: 10**6)
    opened = open_service(tmp_path / "data")
    made(opened)
    monkeypatch.setattr(memory, "available_memory", lambda: 2**40 if not opened._models._loaded else 0)
    job = made(opened, model="facebook/musicgen-small")
    assert (job.recipe.model, fake.load_options["name"]) == ("small", "facebook/musicgen-small")
    assert job.command.startswith("musicgen-mlx piano --duration 0.3")
    assert {model.name for model in opened.models() if model.state == "loaded"} == {"small"}
    opened.close()


def test_a_model_that_fills_masks_makes_what_the_command_makes(
    goldens: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(goldens / "goldens" / "magnet")
    settings = ServerSettings(tmp_path / "data", ModelOptions(folder), limits=Limits(free_bytes=0))
    opened = Service(settings)
    opened.start()
    try:
        values = {"decoding_steps": [3, 2, 1, 1], "span_arrangement": "stride1", "max_cfg_coef": 5.0}
        job = made(opened, model=opened.health().model, **values)
        assert next(model for model in opened.models() if model.default).fills_masks
        assert "--decoding-steps 3,2,1,1 --span-arrangement stride1" in job.command
        monkeypatch.chdir(tmp_path)
        options = ["--decoding-steps", "3,2,1,1", "--span-arrangement", "stride1", "--max-cfg-coef", "5"]
        assert (
            main(["piano", "-m", folder, "-d", "0.3", "--seed", "7", "-o", "a.wav", "--no-open", *options])
            == 0
        )
        np.testing.assert_array_equal(file(opened, job), read(tmp_path / "a.wav"))
        found = opened.read_recipe(tmp_path / "a.wav").recipe
        assert found is not None
        assert (found.decoding_steps, found.span_arrangement, found.max_cfg_coef) == tuple(values.values())
        # A loop, whose join is filled.
        job = made(opened, model=opened.health().model, loop=True, duration=1.0, **values)
        loop = ["piano", "-m", folder, "-d", "1", "--seed", "7", "--loop", "-o", "b.wav", "--no-open"]
        assert main([*loop, *options]) == 0
        np.testing.assert_array_equal(file(opened, job), read(tmp_path / "b.wav"))
        with pytest.raises(InvalidFieldError, match="cfg_coef"):
            submit(opened, cfg_coef=3.0)
        with pytest.raises(InvalidFieldError, match="decoding_steps") as caught:
            submit(opened, decoding_steps=[0])
        assert caught.value.param == "decoding_steps"
    finally:
        opened.close()
