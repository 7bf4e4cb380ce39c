"""What the interface takes and returns: the page's types, those of OpenAPI and of the store.

Values are in the units of `ClipRequest`: seconds, samples per second. An id is opaque: a client never names a
file or an address.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from audiocraft_mlx.clips.defaults import MUSICGEN

Id = str
"""22 characters of URL-safe base64: 128 random bits."""

PEAKS_PER_SECOND = 50
"""Of a waveform that is drawn."""


class Value(BaseModel):
    """Immutable; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class JobSection(Value):
    """A text that follows the prompt."""

    model_config = ConfigDict(strict=True)

    start: float = Field(description="Seconds; audio that is continued isn't counted")
    text: str
    fade: float = Field(0.0, description="Seconds over which it cross-fades with the text before")


class JobRequest(Value):
    """What a job is to make. None is the model's default.

    Fields, ranges and meanings are those of `ClipRequest` and `OutputOptions`, which check them.
    """

    model_config = ConfigDict(strict=True)

    prompt: str = ""
    model: str | None = Field(None, description="One of GET /api/models; default: the server's")
    duration: float = Field(MUSICGEN.duration, description="Seconds to generate")
    takes: int = Field(1, description="How many clips, with consecutive seeds")
    seed: int | None = Field(None, description="Of the first take; default: a random one")
    melody: Id | None = Field(None, description="Id of an audio, MIDI or a clip whose melody is followed")
    melody_separation: str | None = None
    style: Id | None = Field(None, description="Id of an audio or a clip whose style is taken")
    style_coef: float | None = None
    source: Id | None = Field(None, alias="continue", description="Id of an audio or a clip to continue")
    continue_at: float | None = Field(None, description="Seconds of it to keep; default: all of it")
    prompt_seconds: float | None = None
    edit: Id | None = Field(None, description="Id of an audio or a clip of which a part is made anew")
    replace: str | None = Field(None, description="That part, from second to second: 8-12; its length counts")
    candidates: int | None = Field(None, description="Takes of that part, of which one is chosen")
    sections: list[JobSection] = Field(default=[], description="In order; one that begins at 0 is the prompt")
    negative: str | None = Field(None, description="What it shall not be")
    loop: bool = Field(
        False, description="Its end goes on at its beginning; of several takes the best is first"
    )
    bars: int | None = Field(None, description="Of a loop: its duration, in bars of bpm")
    midi_track: int | None = Field(
        None, description="Of those with notes, if the melody is MIDI; default: all"
    )
    chords: str | None = Field(None, description="To follow, in place of a melody: C Am F G; needs bpm")
    bpm: float | None = Field(None, description="Beats per minute")
    beats_per_bar: int | None = Field(None, description="Default: 4")
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    cfg_coef: float | None = None
    max_cfg_coef: float | None = Field(None, description="This and the next three: of models that fill masks")
    min_cfg_coef: float | None = None
    decoding_steps: list[int] | None = None
    span_arrangement: str | None = None
    format: str = Field("wav", description="wav, flac, mp3 or ogg")
    bit_depth: int | None = None
    normalize: str = "none"
    lufs: float | None = None
    fade_out: float | None = None
    ending: str | None = Field(None, description="cut, fade or natural; default: cut; with a fade_out fade")
    stems: bool = False


class Status(str, Enum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        return self in (Status.QUEUED, Status.RUNNING)


class Progress(Value):
    """Steps of its batch."""

    done: int
    total: int


class Clip(Value):
    """One take. Of a job that isn't done `duration` is what it will have.

    Until it is done `sample_rate` and `channels` are those of its stream, the model's; then those of its
    file, which differ if it continues audio with others.
    """

    id: Id
    seed: int
    duration: float = Field(
        description="Seconds, with what it continues; of an edit those of the part until it is done"
    )
    sample_rate: int
    channels: int
    audio: str = Field(description="Address of its file, once it is done")
    stream: str = Field(description="Address of its audio, from the first chunk on")
    peaks: str
    stems: dict[str, str] = Field(default={}, description="Name → address of its file")


class Job(Value):
    id: Id
    status: Status
    created: float = Field(description="Seconds since 1970")
    position: int | None = Field(None, description="In the queue; 0: next")
    progress: Progress | None = None
    speed: float | None = Field(None, description="Of its batch: seconds of music per second")
    error: str | None = None
    title: str | None = None
    favourite: bool = False
    recipe: JobRequest
    command: str = Field(description="The shell command that makes it")
    clips: list[Clip] = Field(default=[], description="Empty until its model is loaded")


class JobPage(Value):
    """Newest first."""

    jobs: list[Job]
    before: str | None = Field(None, description="For the next page; null: that was all")


class JobChange(Value):
    """What can be changed of a job. A field that is left out stays."""

    model_config = ConfigDict(strict=True)

    favourite: bool | None = None
    title: str | None = Field(None, max_length=200)


class Peaks(Value):
    """A waveform to draw: for each 1/`per_second` s the largest absolute sample, 0 to 255."""

    per_second: int = PEAKS_PER_SECOND
    peaks: list[int]


class Audio(Value):
    """Uploaded audio or MIDI."""

    id: Id
    duration: float
    sample_rate: int
    channels: int = Field(description="0: it is MIDI, whose rate doesn't count")


class AudioRecipe(Value):
    """How an audio file was made, by its tags; null: it has none of ours."""

    recipe: JobRequest | None
    command: str | None


class ModelInfo(Value):
    name: str
    state: Literal["loaded", "loading", "on disk", "to download"]
    gigabytes: float | None = Field(None, description="On disk, or to download")
    default: bool = False
    conditions: list[Literal["melody", "style"]] = []
    fills_masks: bool = Field(False, description="Whether it is a MAGNeT")
    max_duration: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    error: str | None = Field(None, description="Why it couldn't be loaded")


class Health(Value):
    status: Literal["ok"] = "ok"
    version: str
    model: str = Field(description="The default one")
    device: str
    hint: str | None = Field(None, description="What a released model needs, if the demo model stands in")
    waiting: int
    limits: dict[str, float]
    downloads: bool = Field(description="Whether released models may be downloaded")
    token: Annotated[bool, Field(description="Whether calls need one")] = False


class ErrorBody(Value):
    """As OpenAI's."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(Value):
    error: ErrorBody


class Event(Value):
    """One of the events of GET /api/events.

    `job`: a Job that is new or has changed. `removed`: `{"id"}`. `progress`: `{"id", "progress", "speed"}`
    of a job. `peaks`: `{"id", "start", "peaks"}` of a clip, `start` as an index into its `Peaks`. `models`:
    the list of `ModelInfo`. `reset`: events were missed; read the lists again.
    """

    id: str
    event: Literal["job", "removed", "progress", "peaks", "models", "reset"]
    data: Any
