"""Unmodified clients of others' interfaces, on a service without a model."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import elevenlabs
import httpx
import numpy as np
import openai
import pytest
import soundfile

from audiocraft_mlx.server.schema import Job, Status
from audiocraft_mlx.server.security import SecuritySettings
from audiocraft_mlx.server.streaming import StreamResampler
from tests.fake_service import RATE, FakeJob, FakeService, tone
from tests.live_server import eventually, running

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def service(tmp_path: Path) -> FakeService:
    return FakeService(tmp_path, speed=20.0)


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    with running(service, SecuritySettings(token=TOKEN)) as url:
        yield url


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0)


@pytest.fixture
def eleven(url: str) -> elevenlabs.ElevenLabs:
    return elevenlabs.ElevenLabs(base_url=url, api_key=TOKEN)


def only_job(service: FakeService) -> FakeJob:
    (job,) = service.made.values()
    return job


def read(data: bytes) -> tuple[np.ndarray, int]:
    """float64 `[samples]`"""
    audio, rate = soundfile.read(io.BytesIO(data))
    return audio, rate


def similar(audio: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.corrcoef(audio, expected)[0, 1] > 0.99)


# OpenAI


@pytest.mark.parametrize(("name", "rate"), [("mp3", RATE), ("opus", 48_000), ("flac", RATE), ("wav", RATE)])
def test_openai_speech_is_music_of_the_asked_length(client: openai.OpenAI, name: str, rate: int) -> None:
    answer = client.audio.speech.create(
        model="tts-1",
        voice="alloy",
        input="a piano",
        response_format=name,
        extra_body={"duration": 1.5, "seed": 3},
    )
    audio, given = read(answer.read())
    assert (given, audio.shape) == (rate, (1.5 * rate,))
    if name in ("flac", "wav"):
        assert np.abs(audio - tone(3, 1.5)[0]).max() < 2**-15
    elif name == "mp3":
        assert similar(audio, tone(3, 1.5)[0])


def test_openai_speech_is_mp3_by_default(client: openai.OpenAI) -> None:
    data = client.audio.speech.create(model="tts-1", voice="alloy", input="x").read()
    audio, rate = read(data)
    assert len(audio) / rate == 8.0
    assert data[:2] == b"\xff\xfb"


def test_openai_pcm_is_24_khz_mono_in_16_bits(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="x", voice="v", input="x", response_format="pcm", extra_body={"duration": 1, "seed": 1}
    ) as answer:
        assert answer.headers["content-length"] == "48000"
        data = b"".join(answer.iter_bytes(1024))
    time_ = np.arange(24_000) / 24_000
    expected = 0.5 * np.sin(2 * np.pi * 221 * time_)
    assert np.abs(np.frombuffer(data, "<i2") / 2**15 - expected)[100:-100].max() < 0.002


def test_openai_speech_begins_before_it_is_done(client: openai.OpenAI, service: FakeService) -> None:
    service.speed = 2.0
    with client.audio.speech.with_streaming_response.create(
        model="x", voice="v", input="x", response_format="wav", extra_body={"duration": 4}
    ) as answer:
        next(answer.iter_bytes(1))
        assert service.status(only_job(service)) is Status.RUNNING


def test_openai_speech_in_events(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="x",
        voice={"id": "voice_1"},
        input="x",
        response_format="wav",
        stream_format="sse",
        instructions="gently",
        speed=1.5,
        extra_body={"duration": 1, "seed": 4},
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    *deltas, last = events
    assert last["type"] == "speech.audio.done"
    assert last["usage"]["total_tokens"] == 0
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    audio, _ = read(b"".join(base64.b64decode(event["audio"]) for event in deltas))
    assert np.abs(audio - tone(4, 1)[0]).max() < 2**-15


def test_openai_extras_reach_the_job(client: openai.OpenAI, service: FakeService) -> None:
    extras = {"seed": 9, "temperature": 0.5, "top_k": 20, "cfg_coef": 2.0, "duration": 0.5, "unknown": 1}
    model = "facebook/musicgen-small"
    client.audio.speech.create(model=model, voice="v", input="a drum", extra_body=extras).read()
    request = only_job(service).request
    assert (request.prompt, request.model, request.takes) == ("a drum", "small", 1)
    for name in extras.keys() - {"unknown"}:
        assert getattr(request, name) == extras[name]


def test_openai_level_and_fade_out_wait_for_the_whole_clip(
    client: openai.OpenAI, service: FakeService
) -> None:
    extras = {"duration": 1, "fade_out": 0.2}
    with client.audio.speech.with_streaming_response.create(
        model="x", voice="v", input="x", response_format="wav", extra_body=extras
    ) as answer:
        assert service.status(only_job(service)) is Status.DONE
        answer.read()


def test_openai_aac_isnt_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.speech.create(model="x", voice="v", input="x", response_format="aac")
    assert caught.value.param == "response_format"
    assert "mp3, opus, flac, wav or pcm" in str(caught.value)


def test_openai_errors_are_those_of_its_client(url: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        client.audio.speech.create(model="x", voice="v", input="x", extra_body={"duration": -1})
    assert wrong.value.param == "duration"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize("name", ["mp3", "wav", "flac"])
def test_openai_failure_before_the_first_sound_is_an_error(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.InternalServerError, match="it failed as it was told"):
        client.audio.speech.create(model="x", voice="v", input="fail", response_format=name)


def test_openai_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["demo", "small"]
    assert models[0].object == "model"
    assert client.models.retrieve("facebook/musicgen-small").owned_by == "musicgen-mlx"


@pytest.mark.parametrize("name", ["mp3", "flac"])
def test_job_of_a_client_that_goes_is_cancelled(url: str, service: FakeService, name: str) -> None:
    service.speed = 0.1
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    body = {"input": "x", "response_format": name, "duration": 60}
    client = http.client.HTTPConnection(url.removeprefix("http://"))
    client.request("POST", "/v1/audio/speech", json.dumps(body), headers)
    assert eventually(lambda: len(service.made) == 1)
    client.close()
    assert eventually(lambda: only_job(service).ended is Status.CANCELLED)


def test_job_of_a_client_that_goes_while_it_listens_is_cancelled(url: str, service: FakeService) -> None:
    service.speed = 1.0
    headers = {"authorization": f"Bearer {TOKEN}"}
    body = {"input": "x", "response_format": "wav", "duration": 60}
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, headers=headers) as answer:
        next(answer.iter_raw())
        assert answer.headers["x-job-id"] == only_job(service).id
    assert eventually(lambda: only_job(service).ended is Status.CANCELLED)


def test_job_that_ends_as_its_client_goes_is_kept(
    url: str, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.speed = 1.0
    job = service.job

    def job_that_ends(id: str) -> Job:
        seen = job(id)
        service.made[id].ended = Status.DONE
        return seen

    def cancel(id: str) -> Job | None:
        service.made[id].ended = Status.DONE
        return FakeService.cancel(service, id)

    headers = {"authorization": f"Bearer {TOKEN}"}
    body = {"input": "x", "response_format": "wav", "duration": 60}
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, headers=headers) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        monkeypatch.setattr(service, "job", job_that_ends)
        monkeypatch.setattr(service, "cancel", cancel)
    assert eventually(lambda: only_job(service).ended is Status.DONE)
    time.sleep(0.1)
    assert not only_job(service).removed


@pytest.mark.parametrize("extras", [{}, {"stream_format": "sse"}])
def test_job_whose_clip_was_sent_whole_is_not_cancelled(
    url: str, service: FakeService, extras: dict[str, str]
) -> None:
    service.saving_seconds = 1.0
    headers = {"authorization": f"Bearer {TOKEN}"}
    body = {"input": "x", "response_format": "wav", "duration": 1, "seed": 3, **extras}
    answer = httpx.post(f"{url}/v1/audio/speech", json=body, headers=headers)
    assert answer.status_code == 200
    assert service.status(only_job(service)) is Status.RUNNING
    assert eventually(lambda: not service.status(only_job(service)).is_live)
    assert service.status(only_job(service)) is Status.DONE


# ElevenLabs


def test_elevenlabs_sound_effect(eleven: elevenlabs.ElevenLabs, service: FakeService) -> None:
    data = b"".join(
        eleven.text_to_sound_effects.convert(
            text="rain",
            duration_seconds=1.5,
            prompt_influence=0.3,
            loop=False,
            model_id="eleven_text_to_sound_v2",
        )
    )
    audio, rate = read(data)
    assert (len(audio), rate) == (1.5 * 44_100, 44_100)
    request = only_job(service).request
    assert (request.prompt, request.model, request.cfg_coef) == ("rain", None, pytest.approx(3.0))


@pytest.mark.parametrize("route", ["compose", "stream"])
def test_elevenlabs_music(eleven: elevenlabs.ElevenLabs, service: FakeService, route: str) -> None:
    data = b"".join(
        getattr(eleven.music, route)(
            prompt="a piano", music_length_ms=1200, seed=11, model_id="music_v1", force_instrumental=True
        )
        if route == "compose"
        else eleven.music.stream(prompt="a piano", music_length_ms=1200, seed=11, model_id="music_v1")
    )
    audio, rate = read(data)
    assert (len(audio), rate) == (1.2 * 44_100, 44_100)
    assert (only_job(service).request.seed, only_job(service).request.duration) == (11, 1.2)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("pcm_16000", 32_000),
        ("pcm_44100", 88_200),
        ("pcm_8000", 16_000),
        ("ulaw_8000", 8_000),
        ("alaw_8000", 8_000),
        ("wav_22050", 44_144),
    ],
)
def test_elevenlabs_formats_of_known_length(eleven: elevenlabs.ElevenLabs, name: str, size: int) -> None:
    data = b"".join(eleven.text_to_sound_effects.convert(text="x", duration_seconds=1, output_format=name))
    assert len(data) == size


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("mp3_22050_32", 22_050),
        ("mp3_44100_192", 44_100),
        ("mp3_44100_32", 44_100),
        ("opus_48000_64", 48_000),
    ],
)
def test_elevenlabs_compressed_formats(eleven: elevenlabs.ElevenLabs, name: str, rate: int) -> None:
    data = b"".join(eleven.music.compose(prompt="x", music_length_ms=2000, output_format=name))
    audio, given = read(data)
    assert given == rate
    assert len(audio) == 2 * rate
    if (kbps := name.split("_")[2]) and name.startswith("mp3"):
        assert len(data) * 8 / 2 / 1000 == pytest.approx(int(kbps), rel=0.06)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": "x", "loop": True}, "loop"),
        ({"text": "x", "prompt_influence": 2}, "prompt_influence"),
        ({}, "text"),
    ],
)
def test_elevenlabs_wrong_sound_fields_are_named(url: str, body: dict, param: str) -> None:
    answer = httpx.post(f"{url}/v1/sound-generation", json=body, headers={"xi-api-key": TOKEN})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize(
    ("body", "param"), [({"composition_plan": {"sections": []}}, "composition_plan"), ({}, "prompt")]
)
def test_elevenlabs_wrong_music_fields_are_named(url: str, body: dict, param: str) -> None:
    answer = httpx.post(f"{url}/v1/music", json=body, headers={"xi-api-key": TOKEN})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize(
    "name",
    [
        "mp3",
        "mp3_44100_9999",
        "mp3_44100_999",
        "opus_24000_64",
        "pcm_1000",
        "mp3_12345",
        "../x",
        "wav_\uff11\uff11025",
    ],
)
def test_elevenlabs_unknown_formats_are_refused_before_anything_is_made(
    url: str, service: FakeService, name: str
) -> None:
    answer = httpx.post(
        f"{url}/v1/music", params={"output_format": name}, json={"prompt": "x"}, headers={"xi-api-key": TOKEN}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "output_format")
    assert not service.made


# Hugging Face


def hugging_face(url: str, code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the tests' own is offline, which the client takes for any address."""
    program = f"from huggingface_hub import InferenceClient\nimport sys\nurl, token = sys.argv[1:]\n{code}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    return subprocess.run(
        [sys.executable, "-c", program, url, TOKEN],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_huggingface_client_gets_flac(url: str, service: FakeService, tmp_path: Path) -> None:
    done = hugging_face(
        url,
        "client = InferenceClient(base_url=f'{url}/hf/facebook/musicgen-small', api_key=token)\n"
        "extra = {'seed': 6}\n"
        "audio = client.text_to_speech('a piano', max_new_tokens=75, do_sample=False, extra_body=extra)\n"
        f"open({str(tmp_path / 'x.flac')!r}, 'wb').write(audio)",
    )
    assert done.returncode == 0, done.stderr
    audio, rate = read((tmp_path / "x.flac").read_bytes())
    assert rate == RATE
    assert np.abs(audio - tone(6, 1.5)[0]).max() < 2**-15
    request = only_job(service).request
    assert (request.model, request.temperature) == ("small", 0.0)


def test_huggingface_client_shows_what_is_wrong(url: str) -> None:
    code = "InferenceClient(base_url=f'{url}/hf/demo', api_key=token).text_to_speech('x', temperature=-1)"
    done = hugging_face(url, code)
    assert "temperature" in done.stderr.splitlines()[-1] + done.stderr
    assert "422" in done.stderr


# Details of the encoders


@pytest.mark.parametrize(
    ("from_rate", "to_rate"), [(32_000, 24_000), (32_000, 44_100), (16_000, 48_000), (44_100, 8_000)]
)
def test_resampling_in_blocks_is_that_of_the_whole(from_rate: int, to_rate: int) -> None:
    from audiocraft_mlx.audio.resample import resample

    rng = np.random.default_rng(0)
    audio = rng.standard_normal((2, 50_003)).astype(np.float32)
    resampler = StreamResampler(from_rate, to_rate)
    blocks, at = [], 0
    while at < audio.shape[1]:
        size = int(rng.integers(1, 9000))
        blocks.append(resampler.push(audio[:, at : at + size]))
        at += size
    blocks.append(resampler.finish())
    result = np.concatenate(blocks, axis=1)
    expected = resample(audio, from_rate, to_rate)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_first_sound_comes_at_once(url: str, service: FakeService) -> None:
    service.speed = 1.0
    headers = {"authorization": f"Bearer {TOKEN}"}
    for name in ("mp3", "wav", "pcm"):
        body = {"input": "x", "response_format": name, "duration": 20}
        begin = time.monotonic()
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, headers=headers) as answer:
            next(answer.iter_raw())
        assert time.monotonic() - begin < 1.0, name
