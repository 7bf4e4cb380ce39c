"""The codec on a clip that comes in pieces: what comes out is the whole clip's."""

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


def in_pieces(decoding: DecoderStream | StereoDecoderStream, codes: mx.array, size: int) -> mx.array:
    frames = codes.shape[2]
    pieces = [
        decoding.step(codes[:, :, start : start + size], is_last=start + size >= frames)
        for start in range(0, frames, size)
    ]
    return mx.concatenate([piece for piece in pieces if piece is not None], axis=2)


@pytest.fixture(params=["codec", "codec_16khz", "stereo"])
def codec(request: pytest.FixtureRequest, goldens: Path, hub_cache: Path) -> Encodec | InterleavedStereoCodec:
    if request.param == "stereo":
        return InterleavedStereoCodec(codec_from(goldens, "codec"))
    return codec_from(goldens, request.param)


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_pieces_of_codes_make_the_same_audio_as_all_at_once(
    codec: Encodec | InterleavedStereoCodec, size: int
) -> None:
    codes = random_codes(codec)
    whole = in_pieces(codec.make_decoder_stream(), codes, FRAMES)
    assert mx.abs(whole).max().item() > 0.01
    np.testing.assert_allclose(in_pieces(codec.make_decoder_stream(), codes, size), whole, atol=1e-5)
    np.testing.assert_allclose(codec.decode(codes), whole, atol=1e-5)


@pytest.mark.parametrize("frames", range(1, 9))
def test_short_clips_decode_in_pieces_too(codec: Encodec | InterleavedStereoCodec, frames: int) -> None:
    codes = random_codes(codec, frames)
    whole = in_pieces(codec.make_decoder_stream(), codes, frames)
    np.testing.assert_allclose(in_pieces(codec.make_decoder_stream(), codes, 1), whole, atol=1e-5)


@pytest.mark.parametrize("piece", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 3, 100, 640, 641, 2000, 12801, 16000])
def test_pieces_of_audio_make_the_same_codes_as_all_at_once(
    codec: Encodec | InterleavedStereoCodec, length: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = mx.random.normal((1, codec.channels, length), key=mx.random.key(2))
    monkeypatch.setattr(encodec, "CHUNK_FRAMES", 1000)
    whole = codec.encode(audio)
    monkeypatch.setattr(encodec, "CHUNK_FRAMES", piece)
    assert mx.array_equal(codec.encode(audio), whole)


def test_so_many_frames_behind_a_frame_tell_all_of_its_audio_and_one_less_doesnt(
    codec: Encodec | InterleavedStereoCodec,
) -> None:
    codes, hop = random_codes(codec), int(codec.sample_rate / codec.frame_rate)
    lookahead_frames = codec.make_decoder_stream().lookahead_frames
    assert lookahead_frames > 1
    for frames in (1, 7, 50):
        for known, enough in ((frames + lookahead_frames, True), (frames + lookahead_frames - 1, False)):
            audio = codec.make_decoder_stream().step(codes[:, :, :known], is_last=False)
            samples = 0 if audio is None else audio.shape[2]
            assert (samples >= frames * hop) == enough


def test_what_is_kept_between_pieces_does_not_grow(goldens: Path) -> None:
    decoding = codec_from(goldens, "codec").make_decoder_stream()
    codes = mx.zeros((1, 4, 10), mx.int32)
    sizes = []
    for _ in range(5):
        decoding.step(codes, is_last=False)
        sizes.append(sum(_kept(decoding._recurrent) + _kept(decoding._local)))
    assert sizes[1] == sizes[-1]


def _kept(value: object) -> list[int]:
    """Frames of all arrays that a layer's progress holds."""
    if isinstance(value, (StreamingConv1d, StreamingConvTranspose1d)):
        return [0 if value._rest is None else value._rest.shape[1]]
    if isinstance(value, mx.array):
        return [value.shape[1]]
    if isinstance(value, (list, tuple)):
        return [size for each in value for size in _kept(each)]
    return [size for each in vars(value).values() for size in _kept(each)] if hasattr(value, "push") else []
