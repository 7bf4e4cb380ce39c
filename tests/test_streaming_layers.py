"""The codec chunk by chunk: the output equals that of the whole clip."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx.networks import encodec
from audiocraft_mlx.networks.encodec import (
    DecoderStream,
    Encodec,
    InterleavedStereoCodec,
    StereoDecoderStream,
)
from audiocraft_mlx.networks.streaming import StreamingConv1d, StreamingConvTranspose1d
from tests.test_networks import codec_from

FRAMES = 61


def random_codes(codec: Encodec | InterleavedStereoCodec, frames: int = FRAMES) -> mx.array:
    return mx.random.randint(0, codec.cardinality, (2, codec.num_codebooks, frames), key=mx.random.key(1))


def decode_chunks(stream: DecoderStream | StereoDecoderStream, codes: mx.array, size: int) -> mx.array:
    frames = codes.shape[2]
    chunks = [
        stream.step(codes[:, :, start : start + size], is_last=start + size >= frames)
        for start in range(0, frames, size)
    ]
    return mx.concatenate([chunk for chunk in chunks if chunk is not None], axis=2)


@pytest.fixture(params=["codec", "codec_16khz", "stereo"])
def codec(request: pytest.FixtureRequest, goldens: Path, hub_cache: Path) -> Encodec | InterleavedStereoCodec:
    if request.param == "stereo":
        return InterleavedStereoCodec(codec_from(goldens, "codec"))
    return codec_from(goldens, request.param)


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_decoding_in_chunks_equals_decoding_at_once(
    codec: Encodec | InterleavedStereoCodec, size: int
) -> None:
    codes = random_codes(codec)
    whole = decode_chunks(codec.make_decoder_stream(), codes, FRAMES)
    assert mx.abs(whole).max().item() > 0.01
    np.testing.assert_allclose(decode_chunks(codec.make_decoder_stream(), codes, size), whole, atol=1e-5)
    np.testing.assert_allclose(codec.decode(codes), whole, atol=1e-5)


@pytest.mark.parametrize("frames", range(1, 9))
def test_short_clips_decode_in_chunks(codec: Encodec | InterleavedStereoCodec, frames: int) -> None:
    codes = random_codes(codec, frames)
    whole = decode_chunks(codec.make_decoder_stream(), codes, frames)
    np.testing.assert_allclose(decode_chunks(codec.make_decoder_stream(), codes, 1), whole, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 3, 100, 640, 641, 2000, 12801, 16000])
def test_encoding_in_chunks_equals_encoding_at_once(
    codec: Encodec | InterleavedStereoCodec, length: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = mx.random.normal((1, codec.channels, length), key=mx.random.key(2))
    monkeypatch.setattr(encodec, "CHUNK_FRAMES", 1000)
    whole = codec.encode(audio)
    monkeypatch.setattr(encodec, "CHUNK_FRAMES", size)
    assert mx.array_equal(codec.encode(audio), whole)


def test_a_frame_is_decoded_after_lookahead_frames_and_not_earlier(
    codec: Encodec | InterleavedStereoCodec,
) -> None:
    codes, hop = random_codes(codec), int(codec.sample_rate / codec.frame_rate)
    lookahead_frames = codec.make_decoder_stream().lookahead_frames
    assert lookahead_frames > 1
    for frames in (1, 7, 50):
        for known, complete in ((frames + lookahead_frames, True), (frames + lookahead_frames - 1, False)):
            audio = codec.make_decoder_stream().step(codes[:, :, :known], is_last=False)
            samples = 0 if audio is None else audio.shape[2]
            assert (samples >= frames * hop) == complete


def test_after_a_warm_up_the_audio_is_what_follows_the_prompts(
    codec: Encodec | InterleavedStereoCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodec, "CHUNK_FRAMES", 16)
    codes, hop = random_codes(codec), int(codec.sample_rate / codec.frame_rate)
    whole = codec.decode(codes)
    for prompt in (1, 2, 3, 5, 8, 13, 16, 17, 30, codes.shape[2] - 1):
        stream = codec.make_decoder_stream()
        stream.warm_up(codes[:, :, :prompt])
        audio = []
        for start in range(prompt, codes.shape[2], 7):
            is_last = start + 7 >= codes.shape[2]
            audio.append(stream.step(codes[:, :, start : start + 7], is_last))
        after = mx.concatenate([chunk for chunk in audio if chunk is not None], axis=2)
        np.testing.assert_allclose(after, whole[:, :, prompt * hop :], atol=1e-5, err_msg=str(prompt))


def test_the_state_between_chunks_does_not_grow(goldens: Path) -> None:
    stream = codec_from(goldens, "codec").make_decoder_stream()
    codes = mx.zeros((1, 4, 10), mx.int32)
    sizes = []
    for _ in range(5):
        stream.step(codes, is_last=False)
        sizes.append(sum(_buffered(stream._recurrent) + _buffered(stream._local)))
    assert 0 < sizes[1] == sizes[-1]


def _buffered(value: object) -> list[int]:
    """Frames of all arrays in a layer's state."""
    if isinstance(value, (StreamingConv1d, StreamingConvTranspose1d)):
        return [0 if value._buffer is None else value._buffer.shape[1]]
    if isinstance(value, mx.array):
        return [value.shape[1]]
    if isinstance(value, (list, tuple)):
        return [size for each in value for size in _buffered(each)]
    return (
        [size for each in vars(value).values() for size in _buffered(each)] if hasattr(value, "step") else []
    )
