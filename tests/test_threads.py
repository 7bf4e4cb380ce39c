"""What one thread generates another can use, and any thread can advance a stream."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiocraft_mlx.models.audiogen import AudioGen
from audiocraft_mlx.models.genmodel import GenModel
from audiocraft_mlx.models.musicgen import MusicGen

RATE = 32000
KINDS = ["mono", "stereo", "audiogen", "melody", "style"]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, goldens: Path, hub_cache: Path, separator: None) -> GenModel:
    kind = AudioGen if request.param == "audiogen" else MusicGen
    model = kind.get_pretrained(str(goldens / "goldens" / request.param))
    in_windows(model)
    return model


def in_windows(model: GenModel, **params: object) -> None:
    """2.4 s in windows of 1.5 s: more than the codec decodes at a time."""
    model.max_duration = 1.5
    model.set_generation_params(duration=2.4, extend_stride=0.8, seed=11, **params)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def threads() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Calls a function in one of three threads, each time in another."""
    pools = [ThreadPoolExecutor(1) for _ in range(3)]
    calls = 0

    def call(function: Callable[[], Any]) -> Any:
        nonlocal calls
        calls += 1
        return pools[calls % 3].submit(function).result()

    yield call
    for pool in pools:
        pool.shutdown()


def test_what_a_pool_generates_is_used_by_the_thread_that_waits(
    model: GenModel, pool: ThreadPoolExecutor
) -> None:
    wanted = [np.array(array) for array in model.generate(["rock"], return_tokens=True)]
    audio, codes = pool.submit(model.generate, ["rock"], return_tokens=True).result()
    np.testing.assert_array_equal(codes, wanted[1])
    np.testing.assert_allclose(audio, wanted[0], atol=1e-5)
    decoded = pool.submit(model.generate_audio, codes).result()
    np.testing.assert_allclose(decoded, audio, atol=1e-5)
    encoded = pool.submit(model.compression_model.encode, audio).result()
    np.testing.assert_array_equal(encoded, np.array(model.compression_model.encode(audio)))
    clip = np.array(audio)[:, :, : 2 * model.sample_rate + 1234]
    rate = model.sample_rate
    continued = pool.submit(model.generate_continuation, clip, rate, ["rock"], return_tokens=True).result()
    whole = model.generate_continuation(clip, rate, ["rock"], return_tokens=True)
    for got, expected in zip(continued, whole, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    inputs = pool.submit(
        model.prepare_inputs, ["rock", "jazz"], [1, 2], prompt=[clip[0]] * 2, prompt_sample_rate=rate
    ).result()
    assert inputs.prompt is not None
    np.testing.assert_array_equal(inputs.prompt[0], inputs.prompt[1])


def test_a_condition_is_used_by_any_thread(
    model: GenModel, threads: Callable[[Callable[[], Any]], Any]
) -> None:
    if model.audio_conditioner is None:
        pytest.skip("without a condition")
    model.set_generation_params(duration=1.6, extend_stride=1.2, seed=11)
    time = np.arange(RATE, dtype=np.float32) / RATE
    melody = 0.3 * np.sin(2 * np.pi * 440 * time)[None]
    start = {"melody_wavs": [melody, None], "melody_sample_rate": RATE}
    wanted = [np.array(chunk) for chunk in model.stream(["rock", None], **start)]
    stream = threads(lambda: model.stream(["rock", None], **start))
    for expected in wanted:
        np.testing.assert_allclose(threads(lambda: next(stream)), expected, atol=1e-5)
    in_windows(model)


def test_what_asyncio_generates_is_used_by_the_event_loop(model: GenModel) -> None:
    async def generate() -> np.ndarray:
        audio = await asyncio.to_thread(model.generate, ["rock"])
        return np.array(audio * 1)

    np.testing.assert_allclose(asyncio.run(generate()), model.generate(["rock"]), atol=1e-5)


@pytest.mark.parametrize("chunk_seconds", [0.02, 0.5, 9.0])
def test_any_thread_advances_a_stream(
    model: GenModel, threads: Callable[[Callable[[], Any]], Any], chunk_seconds: float
) -> None:
    wanted = [np.array(chunk) for chunk in model.stream(["rock", None], chunk_seconds=chunk_seconds)]
    stream = model.stream(["rock", None], chunk_seconds=chunk_seconds)
    chunks = []
    while (chunk := threads(lambda: next(stream, None))) is not None:
        chunks.append(threads(lambda chunk=chunk: np.array(chunk * 1)))
    assert len(chunks) == len(wanted)
    for got, expected in zip(chunks, wanted, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"use_sampling": False}, {"two_step_cfg": True}, {"cfg_coef": 1.0}])
def test_any_thread_advances_a_stream_of_other_parameters(
    model: GenModel, threads: Callable[[Callable[[], Any]], Any], options: dict[str, Any]
) -> None:
    in_windows(model, **options)
    wanted = np.concatenate([np.array(chunk) for chunk in model.stream(["rock"])], axis=2)
    stream = model.stream(["rock"])
    chunks = []
    while (chunk := threads(lambda: next(stream, None))) is not None:
        chunks.append(np.array(chunk))
    in_windows(model)
    np.testing.assert_allclose(np.concatenate(chunks, axis=2), wanted, atol=1e-5)


def test_any_thread_advances_a_stream_that_continues_a_clip(
    model: GenModel, threads: Callable[[Callable[[], Any]], Any]
) -> None:
    clip = 0.3 * np.sin(np.arange(40000, dtype=np.float32) / 20)[None]
    options = {"prompt": clip, "prompt_sample_rate": RATE, "chunk_seconds": 0.3}
    wanted = [np.array(chunk) for chunk in model.stream(["rock"], **options)]
    stream = threads(lambda: model.stream(["rock"], **options))
    for expected in wanted:
        np.testing.assert_allclose(threads(lambda: next(stream)), expected, atol=1e-5)
    assert threads(lambda: next(stream, None)) is None


def test_streams_of_one_model_are_advanced_at_the_same_time(model: GenModel) -> None:
    wanted = [np.concatenate(list(map(np.array, model.stream([text]))), axis=2) for text in ("rock", "jazz")]
    streams = [model.stream([text]) for text in ("rock", "jazz")]
    chunks: list[list[np.ndarray]] = [[], []]
    with ThreadPoolExecutor(2) as pool:
        while True:
            futures: list[Future[Any]] = [pool.submit(next, stream, None) for stream in streams]
            given = [future.result() for future in futures]
            if any(chunk is None for chunk in given):
                break
            for row, chunk in enumerate(given):
                chunks[row].append(np.array(chunk))
    for row, expected in enumerate(wanted):
        np.testing.assert_allclose(np.concatenate(chunks[row], axis=2), expected, atol=1e-5)


def test_starlette_streams_a_stream(model: GenModel) -> None:
    from starlette.responses import StreamingResponse

    wanted = b"".join(np.array(chunk).tobytes() for chunk in model.stream(["rock"], chunk_seconds=0.2))
    body: list[bytes] = []

    async def serve() -> None:
        async def receive() -> dict[str, str]:
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            body.append(message.get("body", b""))

        stream = model.stream(["rock"], chunk_seconds=0.2)
        response = StreamingResponse(np.array(chunk).tobytes() for chunk in stream)
        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)

    asyncio.run(serve())
    np.testing.assert_allclose(
        np.frombuffer(b"".join(body), np.float32), np.frombuffer(wanted, np.float32), atol=1e-5
    )


FORK = """
import multiprocessing
from audiocraft_mlx import MusicGen, MusicGenError

def generate(model, use):
    try:
        use(model)
    except MusicGenError as error:
        raise SystemExit(f"refused: {error}")

model = MusicGen.get_pretrained("demo")
model.set_generation_params(duration=1)
audio, codes = model.generate(["a piano"], return_tokens=True)
stream = model.stream(["a piano"], chunk_seconds=0.1)
next(stream)
uses = [
    lambda model: model.generate(["a piano"]),
    lambda model: next(model.stream(["a piano"])),
    lambda model: model.generate_audio(codes),
    lambda model: MusicGen.get_pretrained("demo"),
    lambda model: next(stream),
    lambda model: model.compression_model.encode(audio),
    lambda model: model.compression_model.decode(codes),
]
for use in uses:
    child = multiprocessing.get_context("fork").Process(target=generate, args=(model, use))
    child.start()
    child.join(20)
    print(child.exitcode)
    child.kill()
"""


def test_a_process_forked_after_a_model_was_used_gets_an_error_instead_of_waiting_for_ever() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1"] * 7
    assert done.stderr.count("refused: MLX can't compute in a process that was forked") == 7


def test_a_process_forked_before_a_model_was_used_computes() -> None:
    script = """
import multiprocessing
from audiocraft_mlx import MusicGen

def generate():
    model = MusicGen.get_pretrained("demo")
    model.set_generation_params(duration=0.1)
    raise SystemExit(model.generate(["a piano"]).shape[2] - 3200)

for _ in range(2):
    child = multiprocessing.get_context("fork").Process(target=generate)
    child.start()
    child.join(60)
    print(child.exitcode)
    child.kill()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0"] * 2, done.stderr
