"""A clip's metadata: written to its tags, read from them, and as the command that generates it again."""

import io
import shlex
import shutil
import subprocess
import sys
import wave
from contextlib import suppress
from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile
from mutagen.id3 import TXXX
from mutagen.wave import WAVE

from audiocraft_mlx.audio.formats import BIT_DEPTHS, AudioFormat, choose_format
from audiocraft_mlx.audio.tags import AudioTags, add_tags, libsndfile_comment, read_tags
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.cli.arguments import GenerateClips, parse
from audiocraft_mlx.clips.defaults import AUDIOGEN, MUSICGEN, CommandDefaults
from audiocraft_mlx.clips.metadata import GenerationMetadata, read_metadata
from audiocraft_mlx.clips.requests import ClipRequest, ModelOptions
from audiocraft_mlx.errors import UsageError

FORMATS = [AudioFormat(name, bits) for name, depths in BIT_DEPTHS.items() for bits in depths or (None,)]
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 3201)).astype(np.float32)
PLAIN = GenerationMetadata("happy rock", "facebook/musicgen-small", 42, 8.0)
FULL = GenerationMetadata(
    "80s „pop“ with 鼓 🥁,\n'quoted' \\ \"twice\"",
    "./my models/large",
    4294967295,
    12.5,
    top_k=0,
    top_p=0.9,
    temperature=0.7,
    cfg_coef=-1e-05,
    options={"quantize": 8, "fast": True, "open": False, "lufs": -14.0, "normalize": "loudness"},
    version="9.8.7",
)


def write(folder: Path, name: str, metadata: GenerationMetadata | None) -> Path:
    path = folder / name
    write_audio(path, NOISE, 32000, choose_format(path), metadata and metadata.to_tags())
    return path


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize("metadata", [PLAIN, FULL])
def test_metadata_is_read_back(
    tmp_path: Path, audio_format: AudioFormat, metadata: GenerationMetadata
) -> None:
    path = tmp_path / f"a.{audio_format.name}"
    write_audio(path, NOISE, 32000, audio_format, metadata.to_tags())
    assert read_metadata(path) == metadata


@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_prompts_may_be_long(tmp_path: Path, name: str) -> None:
    metadata = GenerationMetadata("ünd " * 25_000, "small", 1, 8)
    assert read_metadata(write(tmp_path, f"a.{name}", metadata)) == metadata


@pytest.mark.parametrize("name", BIT_DEPTHS)
@pytest.mark.parametrize("prompt", ["a\0b", "lone \udc80 surrogate"])
def test_any_prompt_is_read_back(tmp_path: Path, name: str, prompt: str) -> None:
    metadata = GenerationMetadata(prompt, "small", 1, 8)
    assert read_metadata(write(tmp_path, f"a.{name}", metadata)) == metadata


@pytest.mark.parametrize("audio_format", FORMATS)
def test_tags_leave_the_audio_unchanged(tmp_path: Path, audio_format: AudioFormat) -> None:
    for name, tags in (("plain", None), ("tagged", FULL.to_tags())):
        write_audio(tmp_path / f"{name}.{audio_format.name}", NOISE, 32000, audio_format, tags)
    plain, tagged = (
        soundfile.read(tmp_path / f"{name}.{audio_format.name}")[0] for name in ("plain", "tagged")
    )
    np.testing.assert_array_equal(tagged, plain)


def test_a_tagged_wav_file_is_read_by_simple_readers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.wav", FULL)
    data = path.read_bytes()
    assert len(data) == 8 + int.from_bytes(data[4:8], "little")
    assert data[36:40] == b"data", "the audio must follow the header at once"
    with wave.open(str(path)) as file:
        assert (file.getnframes(), file.getframerate(), file.getsampwidth()) == (3201, 32000, 2)
        frames = file.readframes(3201)
    np.testing.assert_array_equal(np.frombuffer(frames, "<i2"), np.rint(NOISE[0] * 32768))


@pytest.mark.parametrize(("name", "key"), [("wav", "COMM::eng"), ("mp3", "COMM::eng"), ("flac", "comment")])
def test_players_show_a_comment(tmp_path: Path, name: str, key: str) -> None:
    tags = mutagen.File(write(tmp_path, f"a.{name}", PLAIN)).tags
    comment = tags[key].text[0] if name != "flac" else tags[key][0]
    assert comment.startswith("happy rock (made with musicgen-mlx ")
    assert comment.endswith(": model facebook/musicgen-small, seed 42, 8 s)")


def test_the_same_metadata_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("wav", "flac", "mp3"):
        files = [write(tmp_path, f"{take}.{name}", FULL).read_bytes() for take in "ab"]
        assert files[0] == files[1]


@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_the_format_is_that_of_the_content_not_of_the_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"a.{name}", PLAIN)
    assert read_metadata(path.rename(tmp_path / "clip")) == PLAIN


@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_files_without_our_tags_have_no_metadata(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"a.{name}", None)
    assert read_metadata(path) is None
    tagged = write(tmp_path, f"b.{name}", PLAIN)
    foreign = mutagen.File(tagged)
    for key in ("TXXX:MUSICGEN_MLX", "MUSICGEN_MLX"):
        foreign.pop(key, None)
    foreign.save()
    assert read_metadata(tagged) is None


def test_files_of_other_formats_have_no_metadata(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.aiff", NOISE.T, 32000)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("MUSICGEN_MLX")
    assert [read_metadata(tmp_path / name) for name in ("a.aiff", "empty", "text")] == [None, None, None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "nested too deep"),
        ("{}", "cfg_coef is missing"),
        (PLAIN.to_json().replace("42", '"42"'), "seed is not an integer"),
        (PLAIN.to_json().replace("42", "true"), "seed is not an integer"),
        (PLAIN.to_json().replace("8.0", "NaN"), "duration is not a number"),
        (PLAIN.to_json().replace("8.0", "1e999"), "duration is not a number"),
        (PLAIN.to_json().replace('"happy rock"', "null"), "prompt is not a string"),
        (PLAIN.to_json().replace("{}", "[]"), "options is not an object"),
        (PLAIN.to_json().replace('"musicgen-mlx"', '"rm -rf"'), "program is not one of"),
        (PLAIN.to_json().replace("{}", '{"x": [1]}'), "the option 'x' is not a string"),
        (
            PLAIN.to_json().replace("{}", '{"%s": [1]}' % ("x" * 5000)),
            "xxx... is not a string",
        ),
    ],
)
def test_damaged_tags_are_reported_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path, "a.wav", PLAIN)
    file = WAVE(path)
    file.tags.add(TXXX(desc="MUSICGEN_MLX", text=text))
    file.save()
    with pytest.raises(
        UsageError, match=r"a\.wav has damaged tags \(.*; it may play, but how it was generated"
    ) as error:
        read_metadata(path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_a_truncated_file_is_an_error_or_has_no_tags(tmp_path: Path, name: str) -> None:
    data = write(tmp_path, f"a.{name}", PLAIN).read_bytes()
    for size in range(0, len(data) - 1, 97):
        (tmp_path / f"b.{name}").write_bytes(data[:size])
        try:
            metadata = read_metadata(tmp_path / f"b.{name}")
        except UsageError:
            continue
        assert metadata in (None, PLAIN)


@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_a_damaged_byte_is_an_error_or_ignored(tmp_path: Path, name: str) -> None:
    data = bytearray(write(tmp_path, f"a.{name}", PLAIN).read_bytes())
    for place in range(300):
        kept, data[place] = data[place], 0
        (tmp_path / "b").write_bytes(data)
        data[place] = kept
        with suppress(UsageError):
            read_metadata(tmp_path / "b")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"a\.wav can't be read: No such file or directory; give an audio file"
    ):
        read_metadata(tmp_path / "a.wav")


# Without mutagen


@pytest.fixture
def no_mutagen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mutagen", None)


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize("metadata", [PLAIN, FULL])
def test_without_mutagen_metadata_is_read_back(
    tmp_path: Path, no_mutagen: None, audio_format: AudioFormat, metadata: GenerationMetadata
) -> None:
    path = tmp_path / f"a.{audio_format.name}"
    write_audio(path, NOISE, 32000, audio_format, metadata.to_tags())
    assert read_metadata(path) == metadata


@pytest.mark.parametrize("name", BIT_DEPTHS)
@pytest.mark.parametrize("prompt", ["a\0b", "lone \udc80 surrogate", "x\nMUSICGEN_MLX={}"])
def test_without_mutagen_any_prompt_is_read_back(
    tmp_path: Path, no_mutagen: None, name: str, prompt: str
) -> None:
    metadata = GenerationMetadata(prompt, "small", 1, 8)
    assert read_metadata(write(tmp_path, f"a.{name}", metadata)) == metadata


@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_what_was_written_without_mutagen_is_read_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mutagen", None)
        path = write(tmp_path, f"a.{name}", FULL)
    assert read_metadata(path) == FULL


@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_without_mutagen_players_show_a_comment(tmp_path: Path, no_mutagen: None, name: str) -> None:
    with soundfile.SoundFile(write(tmp_path, f"a.{name}", PLAIN)) as file:
        assert file.comment.startswith("happy rock (made with musicgen-mlx ")


@pytest.mark.parametrize("audio_format", FORMATS)
def test_without_mutagen_tags_leave_the_audio_unchanged(
    tmp_path: Path, no_mutagen: None, audio_format: AudioFormat
) -> None:
    for name, tags in (("plain", None), ("tagged", FULL.to_tags())):
        write_audio(tmp_path / f"{name}.{audio_format.name}", NOISE, 32000, audio_format, tags)
    plain, tagged = (
        soundfile.read(tmp_path / f"{name}.{audio_format.name}")[0] for name in ("plain", "tagged")
    )
    np.testing.assert_array_equal(tagged, plain)


def test_without_mutagen_the_audio_of_wav_still_follows_the_header(tmp_path: Path, no_mutagen: None) -> None:
    data = write(tmp_path, "a.wav", FULL).read_bytes()
    assert len(data) == 8 + int.from_bytes(data[4:8], "little")
    assert data[36:40] == b"data"


@pytest.mark.parametrize("name", ["flac", "mp3", "ogg"])
def test_without_mutagen_prompts_may_be_long_in_all_formats_but_wav(
    tmp_path: Path, no_mutagen: None, name: str
) -> None:
    metadata = GenerationMetadata("ünd " * 25_000, "small", 1, 8)
    assert read_metadata(write(tmp_path, f"a.{name}", metadata)) == metadata


def test_without_mutagen_a_wav_comment_is_cut_before_the_metadata(tmp_path: Path, no_mutagen: None) -> None:
    metadata = GenerationMetadata("long " * 250, "small", 1, 8)
    assert read_metadata(write(tmp_path, "a.wav", metadata)) == metadata
    with soundfile.SoundFile(write(tmp_path, "b.wav", GenerationMetadata("ü" * 2000, "small", 1, 8))) as file:
        assert file.comment == "ü" * 1000
    assert read_metadata(tmp_path / "b.wav") is None


@pytest.mark.parametrize("name", BIT_DEPTHS)
def test_tags_that_need_mutagen_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, foreign = write(tmp_path, f"a.{name}", PLAIN), write(tmp_path, f"b.{name}", None)
    monkeypatch.setitem(sys.modules, "mutagen", None)
    with pytest.raises(
        UsageError, match=rf"a\.{name} has tags that only mutagen reads; install it .*'musicgen-mlx\[tags\]'$"
    ) as error:
        read_metadata(path)
    assert "\n" not in str(error.value)
    assert read_metadata(foreign) is None
    (tmp_path / "empty").touch()
    assert read_metadata(tmp_path / "empty") is None
    with pytest.raises(UsageError, match="can't be read: No such file or directory; give an audio file"):
        read_metadata(tmp_path / "none.wav")


def test_without_mutagen_damaged_metadata_is_reported(tmp_path: Path, no_mutagen: None) -> None:
    write_audio(tmp_path / "a.wav", NOISE, 32000, tags=AudioTags("rock", "{"))
    with pytest.raises(UsageError, match=r"a\.wav has damaged tags \("):
        read_metadata(tmp_path / "a.wav")


def test_tags_are_comment_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = AudioTags("röck", '{"a": 1}')
    for name in BIT_DEPTHS:
        path = tmp_path / f"a.{name}"
        write_audio(path, NOISE, 32000, choose_format(path), tags)
        assert read_tags(path) == tags
    assert libsndfile_comment(tags, "flac") == 'röck\nMUSICGEN_MLX={"a": 1}'
    assert libsndfile_comment(tags, "mp3") == 'r?ck\nMUSICGEN_MLX={"a": 1}'


# Metadata


def test_unknown_fields_of_later_versions_are_ignored() -> None:
    assert GenerationMetadata.from_json(PLAIN.to_json().replace("{", '{"mood": 7, ', 1)) == PLAIN


def test_formats_without_tags_are_refused() -> None:
    with pytest.raises(ValueError, match="can't be tagged"):
        add_tags(io.BytesIO(b"no audio"), PLAIN.to_tags())


@pytest.mark.parametrize(
    "wrong", [{"seed": 1.5}, {"prompt": None}, {"top_k": True}, {"options": {"a": None}}]
)
def test_metadata_of_wrong_types_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="is not"):
        GenerationMetadata(**{"prompt": "rock", "model": "small", "seed": 1, "duration": 8.0, **wrong})


def test_the_command_omits_defaults() -> None:
    assert PLAIN.to_command() == "musicgen-mlx 'happy rock' --seed 42"


def test_the_command_has_all_other_options() -> None:
    metadata = GenerationMetadata(
        "rock",
        "melody",
        7,
        12.5,
        top_k=0,
        top_p=0.9,
        temperature=1.0,
        cfg_coef=-2.0,
        options={"quantize": 8, "fast": True, "open": False, "melody": "my tune.wav", "lufs": -14.5},
    )
    assert metadata.to_command() == (
        "musicgen-mlx rock --model melody --duration 12.5 --seed 7 --top-k 0 --top-p 0.9 --temperature 1 "
        "--cfg-coef=-2 --quantize 8 --fast --melody 'my tune.wav' --lufs=-14.5"
    )


def test_a_prompt_is_never_parsed_as_an_option() -> None:
    command = GenerationMetadata("--fast rock", "small", 7, 8.0).to_command()
    assert command == "musicgen-mlx --model small --seed 7 -- '--fast rock'"


@pytest.mark.parametrize("prompt", ["two\nlines", "\x1b[31mred", "no\u00a0break", "it's\t\\"])
def test_the_command_is_one_line_without_control_characters(prompt: str) -> None:
    assert GenerationMetadata(prompt, "small", 7, 8.0).to_command().isprintable()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "prompt",
    [
        "happy rock",
        "$HOME `ls` \\ ' \" ! * ~ # é🥁",
        "$HOME `ls` \\ ' \" ! * ~\n7\t\x1b[0m\u2028é🥁",
        "7\n7",
        "\\n",
        "",
    ],
)
def test_a_shell_parses_the_command_back(prompt: str) -> None:
    command = (
        GenerationMetadata(prompt, "small", 7, 8.0).to_command().replace("musicgen-mlx", "printf '%s|'", 1)
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert done.stdout.decode() == f"{prompt}|--model|small|--seed|7|"


def test_the_command_line_parses_the_command_back() -> None:
    metadata = GenerationMetadata("-x", "-m", 7, 0.5, top_k=0, top_p=0.9, temperature=0.0, cfg_coef=-1e-05)
    command = parse(shlex.split(metadata.to_command())[1:])
    assert isinstance(command, GenerateClips)
    assert command.model == ModelOptions("-m")
    assert command.requests == (
        ClipRequest("-x", 7, 0.5, top_k=0, top_p=0.9, temperature=0.0, cfg_coef=-1e-05),
    )


@pytest.mark.parametrize("program", [MUSICGEN, AUDIOGEN])
def test_the_defaults_are_those_of_the_command_line(program: CommandDefaults) -> None:
    command = parse(["rock"], program)
    assert isinstance(command, GenerateClips)
    assert (command.model.name, command.requests[0].duration) == (program.model, program.duration)
    metadata = GenerationMetadata("rain", program.model, 1, program.duration, program=program.name)
    assert metadata.to_command() == f"{program.name} rain --seed 1"
    assert f"made with {program.name} " in metadata.summary()
