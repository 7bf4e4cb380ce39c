"""From a folder of audio to the codes and texts that a model is trained on."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import soundfile

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio import decoders
from audiocraft_mlx.audio.read import read_audio, read_duration, read_info, read_pieces
from audiocraft_mlx.audio.resample import convert_audio
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.networks.encodec import Encodec, InterleavedStereoCodec
from audiocraft_mlx.networks.t5 import T5Encoder
from audiocraft_mlx.tuning import codes as codes_module
from audiocraft_mlx.tuning import dataset as dataset_module
from audiocraft_mlx.tuning.cache import Cache, network_digest
from audiocraft_mlx.tuning.codes import describe_encoded, encode_dataset
from audiocraft_mlx.tuning.dataset import Dataset, describe, read_dataset

SECONDS = 1.2
"""Of a file where its length is none of the test's concern."""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes noise, other noise in each file, below the folder `data`."""
    made = 0

    def write(
        name: str, seconds: float = SECONDS, rate: int = 8000, channels: int = 1, gain: float = 0.1
    ) -> Path:
        nonlocal made
        made += 1
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(made).uniform(-gain, gain, (int(seconds * rate), channels))
        soundfile.write(path, noise.astype(np.float32), rate)
        return path

    return write


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def put(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def captions(dataset: Dataset) -> dict[str, str | None]:
    return {file.path.relative_to(dataset.folder).as_posix(): file.caption for file in dataset.files}


def splits(dataset: Dataset) -> dict[str, str]:
    return {file.path.relative_to(dataset.folder).as_posix(): file.split for file in dataset.files}


def skipped(dataset: Dataset) -> dict[str, str]:
    return {file.path.name: file.reason for file in dataset.skipped}


# Captions


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_audiocrafts_table_and_its_files_beside_the_audio(data: Path, write: Write, name: str) -> None:
    """Its paths are those of the machine that made it."""
    for stem in ("a", "sub/b", "c"):
        write(f"{stem}.wav")
    rows = lines(
        {"path": "/somebody/else/dataset/a.wav", "duration": SECONDS, "sample_rate": 8000},
        {"path": "dataset/mine/sub/b.wav", "duration": SECONDS},
        {"path": "dataset/mine/missing.wav", "duration": SECONDS},
    )
    put(data / name, gzip.compress(rows.encode()) if name.endswith("gz") else rows)
    put(data / "a.json", json.dumps({"title": "T", "description": "slow  blues\n in E", "bpm": 60}))
    music = {
        "title": "T",
        "description": None,
        "genre": "funk",
        "bpm": 110,
        "moods": ["dark", "dry"],
        "key": "",
    }
    put(data / "sub" / "b.json", json.dumps(music))
    put(data / "c.json", json.dumps({"title": "only a title", "artist": "nobody"}))
    dataset = read_dataset(data)
    assert captions(dataset) == {
        "a.wav": "slow blues in E",
        "sub/b.wav": "bpm: 110. genre: funk. moods: dark, dry",
    }
    assert skipped(dataset) == {
        "missing.wav": "named in a table, but not there",
        "c.wav": "no caption; give one, or --prompt for all that have none",
    }


def test_hugging_faces_tables_with_splits_as_folders(data: Path, write: Write) -> None:
    for name in ("train/a.wav", "train/b.wav", "validation/c.wav", "test/d.wav"):
        write(name)
    put(data / "train" / "metadata.csv", '\ufefffile_name,text\na.wav,"a, quoted"\nb.wav,two\n')
    put(data / "validation" / "metadata.jsonl", lines({"file_name": "c.wav", "transcription": "three"}))
    put(data / "test" / "metadata.jsonl", lines({"file_name": "d.wav", "text": "four"}))
    dataset = read_dataset(data)
    assert captions(dataset) == {
        "train/a.wav": "a, quoted",
        "train/b.wav": "two",
        "validation/c.wav": "three",
    }
    assert splits(dataset) == {
        "train/a.wav": "train",
        "train/b.wav": "train",
        "validation/c.wav": "validation",
    }
    assert skipped(dataset) == {"d.wav": "of a test split"}
    assert not dataset.is_held_out


@pytest.mark.parametrize("key", ["text", "caption", "description", "prompt", "transcription"])
def test_a_table_above_the_files(data: Path, write: Write, key: str) -> None:
    write("audio/a.wav")
    write("audio/b.wav")
    rows = f"file_name,{key},split\naudio/a.wav,one,train\naudio\\b.wav,two,Validation\n"
    put(data / "metadata.csv", rows)
    dataset = read_dataset(data)
    assert captions(dataset) == {"audio/a.wav": "one", "audio/b.wav": "two"}
    assert splits(dataset) == {"audio/a.wav": "train", "audio/b.wav": "validation"}


def test_tables_as_mlx_lm_has_them(data: Path, write: Write) -> None:
    for stem in "abcd":
        write(f"{stem}.wav")
    put(
        data / "train.jsonl",
        lines({"file": "a.wav", "text": "one"}, {"path": "./b.wav", "caption": "two"}) + "\n",
    )
    put(data / "valid.jsonl", lines({"audio": str(data / "c.wav"), "prompt": "three"}))
    put(data / "test.jsonl", lines({"file": "d.wav", "text": "four"}))
    dataset = read_dataset(data, prompt="any")
    assert captions(dataset) == {"a.wav": "one", "b.wav": "two", "c.wav": "three"}
    assert splits(dataset) == {"a.wav": "train", "b.wav": "train", "c.wav": "validation"}


def test_texts_beside_the_audio(data: Path, write: Write) -> None:
    for name in ("a.wav", "b.v2.flac", "song_chunk0.wav", "song_chunk12.wav", "other_chunk1.wav"):
        write(name)
    put(data / "a.txt", "\ufeffone\r\nline\n")
    put(data / "b.v2.TXT", "two")
    put(data / "song.txt", "of a song")
    put(data / "song_chunk12.txt", "of a part")
    put(data / "other_chunk1.txt", "")
    assert captions(read_dataset(data, prompt="for all")) == {
        "a.wav": "one line",
        "b.v2.flac": "two",
        "song_chunk0.wav": "of a song",
        "song_chunk12.wav": "of a part",
        "other_chunk1.wav": "for all",
    }


def test_a_prompt_is_for_those_that_have_no_caption(data: Path, write: Write) -> None:
    for stem in "abcd":
        write(f"{stem}.wav")
    put(data / "a.txt", "one")
    put(data / "b.txt", "two")
    half = read_dataset(data)
    assert (len(half.files), half.captions) == (2, 2)
    assert describe(half)[-1] == (
        "skipped, no caption; give one, or --prompt for all that have none: 2 files: c.wav, d.wav"
    )
    whole = read_dataset(data, prompt="for all")
    assert (len(whole.files), whole.captions, whole.prompted) == (4, 2, 2)
    assert (
        describe(whole)[1]
        == "captions: 2 files with one of their own, 2 with the prompt for all; 3 different texts"
    )
    assert captions(read_dataset(data, prompt=""))["c.wav"] is None


def test_the_first_of_several_captions_counts_and_the_table_before_a_file(data: Path, write: Write) -> None:
    write("a.wav")
    write("b.wav")
    put(data / "a.txt", "beside")
    put(
        data / "metadata.jsonl",
        lines(*({"file_name": "a.wav", "text": text} for text in ("one", "two", "one"))),
    )
    put(data / "train.jsonl", lines({"file": "b.wav"}))
    put(data / "b.txt", "beside")
    dataset = read_dataset(data)
    assert captions(dataset) == {"a.wav": "one", "b.wav": "beside"}
    assert [(s.reason, s.detail) for s in dataset.skipped] == [
        ("another caption of a file that has one", f"{data / 'metadata.jsonl'}, line 2")
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "name,text\na.wav,one\n", "line 1: there is no column file_name; .*name, text$"),
        ("metadata.csv", "file_name;text\na.wav;one\n", "line 1: there is no column file_name"),
        ("metadata.csv", "", "line 1: there is no column file_name; .*none$"),
        ("metadata.csv", "file_name,text\na.wav,one\n,two\n", "line 3 names no audio file"),
        (
            "metadata.csv",
            "file_name,text\na.wav,slow, warm\n",
            "line 2 has more than 2 columns; put a caption with commas into quotes",
        ),
        ("metadata.csv", b"file_name,text\na.wav,\xff\n", "metadata.csv is not UTF-8"),
        ("metadata.csv", "file_name,text\na.wav," + "x" * 200_000, "line 2: field larger"),
        ("metadata.csv", "file_name,text,split\na.wav,one,mine\n", "line 2: the split is 'mine'; choose"),
        ("metadata.jsonl", lines({"file_name": "a.wav"}) + "{\n", "line 2 is not JSON: Expecting"),
        ("metadata.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("metadata.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("metadata.jsonl", b'{"file_name": "\xff"}', "line 1 is not UTF-8"),
        ("metadata.jsonl", '{"file_name": 3}', "line 1: file_name is not the path of a file"),
        ("metadata.jsonl", '\n\n{"file_name": "a.wav", "text": {}}', "line 3: text is not a text"),
        ("metadata.jsonl", '{"x": "' + "x" * (1 << 20), "line 1 is longer than 1 MiB"),
        ("train.jsonl", lines({"text": "no audio"}), "line 1 names no audio file"),
        ("data.jsonl.gz", b"no gzip", "is damaged: it can't be decompressed"),
        (
            "data.jsonl.gz",
            gzip.compress(b'{"path": "a.wav"}\n', mtime=0)[:-12],
            "is damaged: it can't be decompressed",
        ),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line(
    data: Path, write: Write, name: str, content: str | bytes, message: str
) -> None:
    write("a.wav")
    put(data / name, content)
    with pytest.raises(UsageError, match=message) as raised:
        read_dataset(data, prompt="any")
    assert str(data / name) in str(raised.value)


def test_commas_without_anything_behind_them_are_no_columns(data: Path, write: Write) -> None:
    """As spreadsheets write them."""
    write("a.wav")
    put(data / "metadata.csv", "file_name,text\na.wav,one,,\n")
    assert captions(read_dataset(data)) == {"a.wav": "one"}


def test_a_file_named_for_two_splits_is_said(data: Path, write: Write) -> None:
    for name in ("a.wav", "b.wav"):
        write(name)
    put(data / "train.jsonl", lines(*({"file": name, "text": "one"} for name in ("a.wav", "b.wav"))))
    put(data / "valid.jsonl", lines({"file": "b.wav", "text": "one"}))
    dataset = read_dataset(data, validation_fraction=0)
    assert splits(dataset) == {"a.wav": "train", "b.wav": "train"}
    assert [(s.path.name, s.reason, s.detail) for s in dataset.skipped] == [
        ("b.wav", "another split of a file that has one", f"{data / 'valid.jsonl'}, line 1")
    ]


def test_music_where_the_training_writes_is_refused(data: Path, write: Write) -> None:
    """A clip could take the name of a song, and the cache be removed with the songs."""
    write("out/samples/step-100.wav")
    for folder in (data / "out", data / "out" / "samples"):
        with pytest.raises(UsageError, match=r"is in .*/out, where the training writes; choose another"):
            read_dataset(folder, "any", output=data / "out")


@pytest.mark.parametrize(
    ("name", "content", "detail"),
    [
        ("a.json", '{\n"description": oops}', "line 2 is not JSON"),
        ("a.json", "[]", "line 1 is not a JSON object"),
        ("a.json", '{"description": {"en": "x"}}', "description is not a text"),
        ("a.txt", b"caf\xe9", "is not UTF-8"),
        ("a.txt", b"x" * (1 << 21), "is longer than 1 MiB"),
    ],
)
def test_a_damaged_caption_costs_its_file_only(
    data: Path, write: Write, name: str, content: str | bytes, detail: str
) -> None:
    write("a.wav")
    write("b.wav")
    put(data / name, content)
    dataset = read_dataset(data, prompt="any")
    assert captions(dataset) == {"b.wav": "any"}
    (skip,) = dataset.skipped
    assert skip.reason == "its caption can't be read"
    assert str(data / name) in skip.detail
    assert detail in skip.detail


def test_a_pipe_is_no_caption(data: Path, write: Write) -> None:
    write("a.wav")
    os.mkfifo(data / "a.txt")
    os.mkfifo(data / "b.wav")
    dataset = read_dataset(data, prompt="any")
    assert captions(dataset) == {"a.wav": "any"}
    assert skipped(dataset) == {"b.wav": "not readable"}


def test_a_caption_is_valid_text_of_a_prompts_length(data: Path, write: Write) -> None:
    write("a.wav")
    write("b.wav")
    put(data / "a.txt", "word " * 100_000)
    put(data / "metadata.jsonl", '{"file_name": "b.wav", "text": "half \\ud800"}')
    dataset = read_dataset(data)
    assert [len(file.caption or "") for file in dataset.files] == [10_000, 6]
    assert captions(dataset)["b.wav"] == "half ?"
    assert "1 caption with more than 2048 characters: at most 512 tokens are used" in describe(dataset)[2]


# Paths


@pytest.mark.parametrize("table", ["metadata.jsonl", "train.jsonl", "data.jsonl"])
def test_paths_out_of_the_folder_are_refused(data: Path, write: Write, tmp_path: Path, table: str) -> None:
    write("a.wav")
    outside = write("../outside/secret.wav")
    (data / "way").symlink_to(tmp_path / "outside")
    names = ("../outside/secret.wav", str(outside), "way/secret.wav", "x/../../outside/secret.wav", "..", "/")
    put(data / table, lines({"file_name": "a.wav"}, *({"file_name": name} for name in names)))
    dataset = read_dataset(data, prompt="any")
    assert captions(dataset) == {"a.wav": "any"}
    reasons = {skip.reason for skip in dataset.skipped}
    expected = {"a path in a table leads out of the folder", "links to folders are not followed"}
    assert reasons <= expected | {"named in a table, but not there"}
    assert table == "data.jsonl" or reasons == expected
    assert any(f"{table}, line" in line for line in describe(dataset))


def test_files_may_be_links_as_in_the_hubs_cache(data: Path, write: Write) -> None:
    (data / "a.wav").symlink_to(write("../blobs/0123"[:-5] + "/x.wav"))
    put(data / "metadata.jsonl", lines({"file_name": "a.wav", "text": "one"}))
    assert captions(read_dataset(data)) == {"a.wav": "one"}


def test_what_a_training_has_written_is_no_data(data: Path, write: Write) -> None:
    write("a.wav")
    write("output/samples/step-1.wav")
    write("earlier/samples/step-1.wav")
    put(data / "earlier" / "adapter_config.json", "{}")
    write("stopped/samples/step-1.wav")
    put(data / "stopped" / "checkpoint-3" / "adapter_config.json", "{}")
    write("whole/samples/step-1.wav")
    put(data / "whole" / "lm.safetensors", "")
    dataset = read_dataset(data, prompt="any", output=data / "b" / ".." / "output")
    assert captions(dataset) == {"a.wav": "any"}
    reason = "what a training has written"
    assert skipped(dataset) == dict.fromkeys(("output", "earlier", "stopped", "whole"), reason)


def test_odd_names_in_tables_are_not_there(data: Path, write: Write) -> None:
    write("a.wav")
    put(
        data / "train.jsonl",
        lines(*({"file": name} for name in ("\0", "a.wav/b", "\ud800\x1b[2J", "a" * 5000))),
    )
    dataset = read_dataset(data, prompt="any")
    assert captions(dataset) == {"a.wav": "any"}
    assert {skip.reason for skip in dataset.skipped} == {"named in a table, but not there"}
    assert describe(dataset)[-1].isprintable()


def test_what_is_hidden_or_not_audio_is_no_file(data: Path, write: Write) -> None:
    write("a.wav")
    write(".git/b.wav")
    for name in ("._a.wav", "cover.jpg", "notes.md", "train-00000-of-00001.parquet"):
        put(data / name, "x")
    dataset = read_dataset(data, prompt="any")
    assert captions(dataset) == {"a.wav": "any"}
    assert [skip.reason for skip in dataset.skipped] == ["Parquet is not read; convert it to metadata.jsonl"]


def test_a_folder_without_audio_is_refused(data: Path) -> None:
    with pytest.raises(UsageError, match="has no audio files; give a folder"):
        read_dataset(data)
    with pytest.raises(UsageError, match="does not exist; give the folder"):
        read_dataset(data / "none")
    put(data / "a.wav", "")
    with pytest.raises(UsageError, match="is not a folder; give the folder"):
        read_dataset(data / "a.wav")
    for fraction in (-0.1, 1, float("nan")):
        with pytest.raises(UsageError, match="validation_fraction must be from 0 to below 1"):
            read_dataset(data, validation_fraction=fraction)


# Audio


def test_bad_audio_is_skipped_with_its_reason(data: Path, write: Write) -> None:
    write("good.wav", 3)
    write("short.wav", 0.4)
    put(data / "text.mp3", "not audio at all")
    put(data / "empty.flac", "")
    (data / "folder.wav").mkdir()
    dataset = read_dataset(data, prompt="any")
    assert [(file.path.name, file.duration) for file in dataset.files] == [("good.wav", 3.0)]
    assert skipped(dataset) == {
        "short.wav": "shorter than 1 s",
        "text.mp3": "not readable",
        "empty.flac": "not readable",
    }
    assert dataset.minutes == 0.05
    assert describe(dataset)[0] == "1 file to use, 0.1 minutes: 1 to train, 0 to validate (0.0 minutes)"
    assert "skipped, shorter than 1 s: 1 file: short.wav (0.40 s)" in describe(dataset)


def test_a_reason_has_one_line_with_the_first_files(data: Path, write: Write) -> None:
    write("a.wav")
    for number in range(5):
        write(f"short{number}.wav", 0.2)
    assert describe(read_dataset(data, prompt="any"))[-1] == (
        "skipped, shorter than 1 s: 5 files: short0.wav (0.20 s), short1.wav (0.20 s), short2.wav (0.20 s)"
        " and 2 more"
    )


@pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "ogg", "aiff", "au"])
def test_durations_are_read_without_decoding(
    data: Path, write: Write, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    path = write(f"a.{extension}", 2.5, rate=44100)
    info = read_info(path)
    monkeypatch.setattr("soundfile.SoundFile.read", lambda *_, **__: pytest.fail("decoded"))
    if extension in ("flac", "mp3"):  # all of such a file is looked at, or else only its header
        monkeypatch.setattr(decoders, "_find_parts", lambda *_, **__: pytest.fail("looked at"))
    assert read_duration(path) == info.frames / info.rate


def test_durations_of_containers_are_read_from_their_header(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    with av.open(str(data / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=32000, layout="mono")
        for _ in range(100):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 32000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    exact = read_info(data / "a.m4a")
    monkeypatch.setattr(
        "audiocraft_mlx.audio.containers.ContainerDecoder.blocks", lambda *_: pytest.fail("decoded")
    )
    assert read_duration(data / "a.m4a") == pytest.approx(exact.frames / exact.rate, abs=0.1)


def test_the_same_audio_is_used_once(data: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train/a.wav", "train/b.wav", "valid/c.wav"):
        write(name)
    shutil.copy(data / "train" / "a.wav", data / "train" / "z.wav")
    shutil.copy(data / "train" / "a.wav", data / "valid" / "a.wav")
    dataset = read_dataset(data, prompt="any")
    assert splits(dataset) == {"train/a.wav": "train", "train/b.wav": "train", "valid/c.wav": "validation"}
    assert describe(dataset)[-1] == (
        "skipped, the same audio as another file: 2 files: train/z.wav (a.wav is used),"
        " valid/a.wav (a.wav is used)"
    )
    # Of the same size, and the same in what is looked at first.
    monkeypatch.setattr(dataset_module, "sampled_digest", lambda path: 0)
    assert splits(read_dataset(data, prompt="any")) == splits(dataset)


# Splits


def test_files_are_held_out_by_their_names_and_the_seed(data: Path, write: Write) -> None:
    for number in range(20):
        write(f"{number:02}.wav")
    first = read_dataset(data, "any", 0.2)
    held_out = {name for name, split in splits(first).items() if split == "validation"}
    assert len(held_out) == 4
    assert first.is_held_out
    assert describe(first)[0].endswith("16 to train, 4 to validate (0.1 minutes), held out by their names")
    assert splits(read_dataset(data, "other", 0.2)) == splits(first)
    assert splits(read_dataset(data, "any", 0.2, seed=1)) != splits(first)
    assert held_out < {
        n for n, split in splits(read_dataset(data, "any", 0.5)).items() if split == "validation"
    }
    assert set(splits(read_dataset(data, "any", 0)).values()) == {"train"}


def test_one_of_two_files_is_held_out_but_not_the_only_one(data: Path, write: Write) -> None:
    write("a.wav")
    assert splits(read_dataset(data, "any")) == {"a.wav": "train"}
    write("b.wav")
    assert sorted(splits(read_dataset(data, "any")).values()) == ["train", "validation"]


def test_parts_of_a_song_are_on_the_same_side(data: Path, write: Write) -> None:
    for song in "abcd":
        for part in range(3):
            write(f"{song}_chunk{part}.wav")
    for seed in range(5):
        sides: dict[str, set[str]] = {}
        for name, split in splits(read_dataset(data, "any", 0.25, seed)).items():
            sides.setdefault(name[0], set()).add(split)
        assert sorted(map(len, sides.values())) == [1] * 4
        assert [*sides.values()].count({"validation"}) == 1
    for song in "bcd":
        for part in range(3):
            (data / f"{song}_chunk{part}.wav").unlink()
    assert sorted(splits(read_dataset(data, "any", 0.25)).values()) == ["train", "train", "validation"]


def test_a_folder_called_test_is_a_split_only_beside_train(data: Path, write: Write) -> None:
    for name in ("Test/a.wav", "test/b.wav", "dev/c.wav", "album/d.wav"):
        write(name)
    assert len(read_dataset(data, "any").files) == 4
    write("train/e.wav")
    named = splits(read_dataset(data, "any"))
    assert named == {
        "Test/a.wav": "train",
        "dev/c.wav": "validation",
        "album/d.wav": "train",
        "train/e.wav": "train",
    }


# Codes


@pytest.fixture(scope="module")
def demo() -> MusicGen:
    return MusicGen.get_pretrained("demo")


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the audio and the tokens that a network has encoded."""
    calls: list[tuple[int, ...]] = []
    for network, method in ((Encodec, "encode"), (T5Encoder, "__call__")):
        original = getattr(network, method)

        def call(self: object, first: mx.array, *rest: mx.array, original: Callable = original) -> mx.array:
            calls.append(tuple(first.shape))
            return original(self, first, *rest)

        monkeypatch.setattr(network, method, call)
    return calls


def test_files_become_crops_of_codes(data: Path, write: Write, demo: MusicGen, tmp_path: Path) -> None:
    path = write("a.wav", 3.5, rate=32000)
    write("b.wav", 2.5, rate=32000)
    dataset = read_dataset(data, "a tune", 0)
    seen: list[tuple[int, int]] = []
    encoded = encode_dataset(dataset, demo, tmp_path / "cache", 2, False, lambda *s: seen.append(s))
    num_codebooks = demo.lm.config.num_codebooks
    assert [example.codes.shape for example in encoded.train] == [
        (num_codebooks, frames) for frames in (100, 75, 100)
    ]
    assert [example.source for example in encoded.train] == ["a.wav, 0 s", "a.wav, 2 s", "b.wav, 0 s"]
    assert {example.codes.dtype for example in encoded.train} == {np.dtype(np.int16)}
    audio, _ = read_audio(path)
    for start, example in zip((0, 64000), encoded.train[:2], strict=True):
        codes = demo.compression_model.encode(mx.array(audio[None, :, start : start + 64000]))
        np.testing.assert_array_equal(example.codes, np.asarray(codes)[0])
    assert (encoded.encoded_files, encoded.validation, encoded.skipped) == (2, (), ())
    assert seen == sorted(seen)
    assert seen[-1] == (6, 6)
    assert describe_encoded(encoded) == ["3 crops to train, 0 to validate; 1 text"]


def test_texts_are_t5s_states_before_the_projection(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path
) -> None:
    for stem, text in (("a", "one"), ("b", "a longer text"), ("c", "one"), ("d", None)):
        write(f"{stem}.wav")
        if text:
            put(data / f"{stem}.txt", text)
    encoded = encode_dataset(read_dataset(data, "", 0), demo, tmp_path / "cache", 2)
    assert [example.text for example in encoded.train] == [0, 1, 0, None]
    conditioner = demo.text_conditioner
    for states, text in zip(encoded.texts, ("one", "a longer text"), strict=True):
        assert (states.dtype, states.shape[1]) == (np.float32, conditioner.t5.config.dim)
        projected = (
            mx.array(states) if conditioner.output_proj is None else conditioner.output_proj(mx.array(states))
        )
        expected = conditioner.hidden_states([text])[0][0]
        np.testing.assert_allclose(np.asarray(projected), np.asarray(expected), atol=1e-5)


def test_a_caption_of_two_thousand_words_is_cut(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path
) -> None:
    write("a.wav")
    put(data / "a.txt", "drums " * 2000)
    for _ in range(2):  # made, then from the cache
        encoded = encode_dataset(read_dataset(data), demo, tmp_path / "cache", 2)
        assert encoded.texts[0].shape[0] == 512
        assert describe_encoded(encoded)[1:] == [
            "cut after 512 tokens, the most that the text encoder was trained with: 1 caption"
        ]


@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (48000, 1), (8000, 6)])
def test_any_rate_and_channels_for_a_mono_model(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path, rate: int, channels: int
) -> None:
    path = write("a.wav", 1.5, rate, channels)
    (example,) = encode_dataset(read_dataset(data, "any"), demo, tmp_path / "cache", 8).train
    audio, _ = read_audio(path)
    converted = np.ascontiguousarray(convert_audio(audio, rate, 32000, 1)[None])
    np.testing.assert_array_equal(
        example.codes, np.asarray(demo.compression_model.encode(mx.array(converted)))[0]
    )
    assert example.codes.shape == (demo.lm.config.num_codebooks, 75)


def test_a_stereo_model_has_interleaved_codes(data: Path, write: Write, tmp_path: Path) -> None:
    model = MusicGen.get_pretrained("demo")
    mono = model.compression_model
    assert isinstance(mono, Encodec)
    model.compression_model = InterleavedStereoCodec(mono)
    left_right = read_audio(write("a.wav", 1.2, 32000, 2))[0]
    write("b.wav", 1.2, 32000)
    stereo, repeated = encode_dataset(read_dataset(data, "any", 0), model, tmp_path / "cache", 2).train
    for channel in range(2):
        codes = mono.encode(mx.array(left_right[None, channel : channel + 1]))
        np.testing.assert_array_equal(stereo.codes[channel::2], np.asarray(codes)[0])
    np.testing.assert_array_equal(repeated.codes[::2], repeated.codes[1::2])


def test_silence_is_left_out(data: Path, write: Write, demo: MusicGen, tmp_path: Path) -> None:
    write("a.wav", 1.5)
    write("noise.wav", 3, gain=1e-4)
    half = write("half.wav", 4, 32000)
    audio, _ = read_audio(half)
    audio[:, 32000:96000] = 0
    soundfile.write(half, audio.T, 32000)
    left = write("phase.wav", 1.5, 32000)
    audio, _ = read_audio(left)
    soundfile.write(left, np.concatenate([audio, -audio]).T, 32000)
    for _ in range(2):
        encoded = encode_dataset(read_dataset(data, "any", 0), demo, tmp_path / "cache", 1)
        assert [example.source for example in encoded.train] == [
            "a.wav, 0 s",
            "half.wav, 0 s",
            "half.wav, 3 s",
            "phase.wav, 0 s",
        ]
        assert describe_encoded(encoded)[1:] == [
            "left out, silent: 2 crops",
            "skipped, silent: 1 file: noise.wav",
        ]


def test_nothing_left_to_train_on_is_an_error_that_says_why(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path
) -> None:
    write("quiet.wav", 3, gain=1e-5)
    write("short.wav", 0.5)
    with pytest.raises(
        UsageError, match=r"no audio to train on is left: skipped, shorter than 1 s.*; skipped, silent"
    ):
        encode_dataset(read_dataset(data, "any"), demo, tmp_path / "cache", 2)
    with pytest.raises(UsageError, match="crop_seconds must be from 1 to"):
        encode_dataset(read_dataset(data, "any"), demo, tmp_path / "cache", 0.5)


def damage(path: Path) -> None:
    """Its beginning and its end are right, what is between isn't."""
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)


def test_a_file_that_fails_in_its_midst_costs_itself_only(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path
) -> None:
    write("a.wav")
    damage(write("b.flac", 12, 44100))
    write("c.wav")
    gone = write("d.wav")
    dataset = read_dataset(data, "any", 0)
    assert len(dataset.files) == 4
    gone.unlink()
    encoded = encode_dataset(dataset, demo, tmp_path / "cache", 5)
    assert [example.source for example in encoded.train] == ["a.wav, 0 s", "c.wav, 0 s"]
    assert [(skip.path.name, skip.reason) for skip in encoded.skipped] == [
        ("b.flac", "damaged"),
        ("d.wav", "damaged"),
    ]
    assert "b.flac is damaged" in encoded.skipped[0].detail


def test_a_second_time_nothing_is_encoded(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path, encodings: list[tuple[int, ...]]
) -> None:
    for stem in "abc":
        put(data / f"{stem}.txt", f"text {stem}")
        write(f"{stem}.wav")
    first = encode_dataset(read_dataset(data), demo, tmp_path / "cache", 2)
    assert len(encodings) == 6
    second = encode_dataset(read_dataset(data), demo, tmp_path / "cache", 2)
    assert (len(encodings), second.encoded_files) == (6, 0)
    for one, other in zip(first.train + first.validation, second.train + second.validation, strict=True):
        np.testing.assert_array_equal(one.codes, other.codes)
        assert (one.text, one.source) == (other.text, other.source)
    for one, other in zip(first.texts, second.texts, strict=True):
        np.testing.assert_array_equal(one, other)
    # Moved, with new captions: the audio is the same. Another length of crops, or other audio: it isn't.
    shutil.move(data, data.with_name("moved"))
    moved = read_dataset(data.with_name("moved"), "any")
    assert encode_dataset(moved, demo, tmp_path / "cache", 2).encoded_files == 0
    for seconds in (1.1, 1, 2):
        assert encode_dataset(moved, demo, tmp_path / "other", seconds).encoded_files == 3
    path = write("../moved/a.wav", rate=44100)
    assert encode_dataset(moved, demo, tmp_path / "cache", 2).encoded_files == 1
    # Changed somewhere between its beginning, middle and end.
    content = bytearray(path.read_bytes())
    content[30_000:31_000] = bytes(1000)
    path.write_bytes(content)
    assert encode_dataset(moved, demo, tmp_path / "cache", 2).encoded_files == 1


def test_a_networks_digest_is_that_of_its_values() -> None:
    layer = nn.Linear(100, 100)
    layer.set_dtype(mx.float16)
    before = network_digest(layer)
    layer.set_dtype(mx.float32)
    assert network_digest(layer) == before
    layer.weight *= 1.01
    assert network_digest(layer) != before


def test_an_interrupted_encoding_goes_on(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stem in "abcd":
        write(f"{stem}.wav")
    dataset = read_dataset(data, "any")
    original, calls = Cache.write, []

    def interrupt(self: Cache, kind: str, *rest: object) -> None:
        calls.append(kind)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(self, kind, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Cache, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(dataset, demo, tmp_path / "cache", 2)
    part = tmp_path / "cache" / ".musicgen-0123456789abcdef.part"
    put(part, "of a process that was killed")
    assert encode_dataset(dataset, demo, tmp_path / "cache", 2).encoded_files == 2
    assert not part.exists()


def test_damaged_files_of_the_cache_are_made_anew(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path
) -> None:
    for stem in "abcdef":
        write(f"{stem}.wav")
    dataset, cache = read_dataset(data, "any", 0), tmp_path / "cache"
    first = encode_dataset(dataset, demo, cache, 2)
    codes = sorted(cache.glob("codes-*.npz"))
    assert len(codes) == 6
    content = codes[0].read_bytes()
    codes[0].write_bytes(content[: len(content) // 2])
    codes[1].write_bytes(b"")
    flipped = bytearray(codes[2].read_bytes())
    flipped[200] ^= 1  # in the codes
    codes[2].write_bytes(flipped)
    np.savez(codes[3], codes=np.zeros((4, 60), np.int16))
    with np.load(codes[4]) as arrays:
        np.savez(codes[4], **{**arrays, "codes": arrays["codes"] + np.int16(5000)})
    for path in cache.glob("text-*.npz"):
        np.savez(path, states=np.zeros((3, 1), np.float32))
    second = encode_dataset(dataset, demo, cache, 2)
    assert second.encoded_files == 5
    for one, other in zip(first.train, second.train, strict=True):
        np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(first.texts[0], second.texts[0])


def test_the_cache_is_of_one_codec_and_one_text_encoder(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path, encodings: list[tuple[int, ...]]
) -> None:
    write("a.wav")
    dataset = read_dataset(data, "any")
    encode_dataset(dataset, demo, tmp_path / "cache", 2)
    changed = MusicGen.get_pretrained("demo")
    encode_dataset(dataset, changed, tmp_path / "cache", 2)
    assert len(encodings) == 2
    changed.compression_model.quantizer.codebooks *= 1.01  # type: ignore[union-attr]
    encode_dataset(dataset, changed, tmp_path / "cache", 2)
    assert len(encodings) == 3
    changed.text_conditioner.t5.norm.weight *= 1.01
    encode_dataset(dataset, changed, tmp_path / "cache", 2)
    assert len(encodings) == 4


def test_equal_audio_in_another_format_is_not_validated_on(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path
) -> None:
    path = write("train/a.wav", 2.5)
    (data / "valid").mkdir()
    soundfile.write(data / "valid" / "b.flac", read_audio(path)[0].T, 8000)
    write("valid/c.wav", 1.5)
    encoded = encode_dataset(read_dataset(data, "any"), demo, tmp_path / "cache", 2)
    assert [example.source for example in encoded.validation] == ["valid/c.wav, 0 s"]
    assert describe_encoded(encoded)[1:] == ["left out of validation, the same audio as in training: 1 crop"]


class HalfVocals:
    """Says that half of any audio is the voice."""

    sources, sample_rate, channels = ("drums", "vocals", "other"), 44100, 2

    def separate(self, audio: mx.array) -> mx.array:
        assert audio.shape[:2] == (1, 2)
        return mx.stack([0.25 * audio, 0.5 * audio, 0.25 * audio], axis=1)


def test_vocals_are_taken_out(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.wav", 1.2, 44100, 2)
    dataset, cache = read_dataset(data, "any"), tmp_path / "cache"
    (with_vocals,) = encode_dataset(dataset, demo, cache, 2).train
    monkeypatch.setattr(codes_module, "load_htdemucs", HalfVocals)
    (without,) = encode_dataset(dataset, demo, cache, 2, drop_vocals=True).train
    half = convert_audio(0.5 * read_audio(path)[0], 44100, 32000, 1)[None]
    expected = demo.compression_model.encode(mx.array(np.ascontiguousarray(half)))
    np.testing.assert_array_equal(without.codes, np.asarray(expected)[0])
    assert (without.codes != with_vocals.codes).any()
    # A second time the network isn't even loaded.
    monkeypatch.setattr(codes_module, "load_htdemucs", lambda: pytest.fail("loaded"))
    assert encode_dataset(dataset, demo, cache, 2, drop_vocals=True).encoded_files == 0
    (again,) = encode_dataset(dataset, demo, cache, 2).train
    np.testing.assert_array_equal(again.codes, with_vocals.codes)


def test_a_cache_that_cannot_be_written_ends_it(
    data: Path, write: Write, demo: MusicGen, tmp_path: Path
) -> None:
    write("a.wav")
    put(tmp_path / "cache", "a file")
    with pytest.raises(OutputError, match="cache can't be written"):
        encode_dataset(read_dataset(data, "any"), demo, tmp_path / "cache", 2)


def test_long_files_are_read_in_pieces(data: Path, write: Write) -> None:
    path = write("a.wav", 20, 44100, 2)
    whole, rate = read_audio(path)
    pieces = [*read_pieces(path, 1.5)]
    assert [piece.audio.shape[1] for piece in pieces] == [66150] * 13 + [882000 - 13 * 66150]
    np.testing.assert_array_equal(np.concatenate([piece.audio for piece in pieces], axis=1), whole)
    assert {piece.rate for piece in pieces} == {rate}
