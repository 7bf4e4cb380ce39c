"""Where the clips of one command go as they are generated: files, standard output, the player, messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from audiocraft_mlx.audio.loop import Loop
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.audio.wav_stream import ContinuationWavStream, WavStream
from audiocraft_mlx.cli.arguments import GenerateClips
from audiocraft_mlx.cli.clip_files import ClipFiles
from audiocraft_mlx.cli.clips_progress import ClipsProgress
from audiocraft_mlx.cli.common import print_stderr, print_stdout
from audiocraft_mlx.cli.loop_takes import LoopTakes
from audiocraft_mlx.cli.playing import Player
from audiocraft_mlx.clips.codes import ClipCodes
from audiocraft_mlx.clips.finishing import FinishedAudio, finish_audio, separate_stems
from audiocraft_mlx.clips.loops import made_seconds
from audiocraft_mlx.clips.making import Chunk, Event, Finished, Progress, Started
from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.clips.planning import ClipPlan
from audiocraft_mlx.clips.saving import SavedFile, save_clip
from audiocraft_mlx.clips.source import AudioInput
from audiocraft_mlx.conditioning.notes import Notes

if TYPE_CHECKING:
    from pathlib import Path

    from audiocraft_mlx.audio.plot import Chromagram, StyleExcerpt
    from audiocraft_mlx.clips.manifest import Manifest
    from audiocraft_mlx.models.genmodel import GenModel
    from audiocraft_mlx.networks.htdemucs import HTDemucs


@dataclass(frozen=True, eq=False)
class _Made:
    """A clip that is complete. `timing` is what is told of it, if it is the only one."""

    index: int
    plan: ClipPlan
    clip: FinishedAudio | None
    timing: str
    codes: ClipCodes | None = None


# More files aren't named in one line.
_MAX_NAMED = 3


class ClipWriter:
    """The sinks of the clips that are generated.

    Attributes:
        paths: the files that hold the clips so far.
    """

    def __init__(
        self,
        command: GenerateClips,
        files: Sequence[ClipFiles],
        model: GenModel,
        separator: HTDemucs | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self._command, self._files = command, files
        self._model, self._separator, self._manifest = model, separator, manifest
        self._streaming = command.streaming
        # Standard output belongs to the audio.
        self._print: Callable[[str], None] = print_stderr if self._streaming else print_stdout
        self.paths: list[Path] = []
        self._chromagrams: dict[
            tuple[AudioInput | Notes | None, float], Chromagram | StyleExcerpt | None
        ] = {}
        # Of the clips that have begun and aren't finished.
        self._plans: dict[int, ClipPlan] = {}
        self._unfinished: set[int] = set()
        self._spools: dict[int, AudioSpool] = {}
        self._stream: WavStream | None = None
        self._player: Player | None = None
        self._takes: LoopTakes[_Made] = LoopTakes()
        seconds = sum(made_seconds(clip.request) for clip in command.clips)
        self._progress = ClipsProgress(seconds, len(command.clips))
        self._warn_unsupported_options()

    def show_progress(self, progress: Progress, first: int = 0) -> None:
        """Of clips that are counted from the clip `first` of the command on."""
        self._progress.advance(replace(progress, first=first + progress.first))

    def handle(self, event: Event, first: int = 0) -> None:
        """Take an event, whose clips are counted from the clip `first` of the command on.

        Raises `OutputError`, and `BrokenPipeError` if the reader of standard output has gone.
        """
        if isinstance(event, Started):
            self._start(tuple(replace(plan, index=first + plan.index) for plan in event.batch))
        elif isinstance(event, Chunk):
            self._write(replace(event, index=first + event.index))
        elif isinstance(event, Finished):
            self._finish(replace(event, index=first + event.index))

    def save_partial(self) -> str:
        """Save the output so far of clips that were interrupted; a message about it."""
        self._stop()
        started = {index: self._spools[index] for index in sorted(self._unfinished & {*self._spools})}
        started = {
            index: spool
            for index, spool in started.items()
            if spool.samples and self._files[index].path is not None
        }
        for ranked in self._takes.rest():
            self._put(ranked.place, ranked.take, partial=True)
        if self._streaming or not started:
            return ""
        kept = [str(self._save(index, index, self._finished(index), partial=True).path) for index in started]
        named = kept if len(kept) <= _MAX_NAMED else [kept[0], "…", kept[-1]]
        lengths = {spool.samples / self._model.sample_rate for spool in started.values()}
        made = f"the {lengths.pop():.2f} s" if len(lengths) == 1 else f"up to {max(lengths):.2f} s"
        return f"interrupted; {made} made so far are kept in {', '.join(named)}"

    def close(self) -> None:
        """Stop the player, and drop what wasn't saved."""
        self._stop()
        for spool in self._spools.values():
            spool.close()
        self._spools = {}

    def _stop(self) -> None:
        self._progress.close()
        if self._player is not None:
            self._player.stop()
            self._player = None

    def _start(self, batch: tuple[ClipPlan, ...]) -> None:
        model = self._model
        plans = {plan.index: plan for plan in batch}
        self._plans |= plans
        self._unfinished |= {*plans}
        for index in plans:
            # The files of a loop are known when all takes are made; the first take has some in any case.
            files = self._files[index if self._plans[index].loop is None else self._first_take(index)]
            path = files.path or files.plot
            if path is not None:
                self._spools[index] = AudioSpool(model.audio_channels, path)
        first = batch[0]
        if self._command.play:
            self._player = Player(first.seconds, model.sample_rate, model.audio_channels, self._report)
            if first.prompt is not None:
                self._player.write_prompt(first.prompt)
        self._progress.start(batch)
        self._stream = self._open_stream(first) if self._streaming else None

    def _write(self, event: Chunk) -> None:
        if event.index in self._spools:
            self._spools[event.index].append(event.audio)
        if self._player is not None:
            self._player.write(event.audio)
        if self._stream is not None:
            self._stream.write(event.audio)

    def _finish(self, event: Finished) -> None:
        plan, total = self._plans[event.index], len(self._command.clips)
        self._progress.finish(plan)
        self._report_clipping()
        timing = f"{event.elapsed:.1f} s to make, {plan.seconds / event.elapsed:.2f}x real time"
        clip = self._finished(event.index, event.loop) if event.index in self._spools else None
        listed = self._command.clips[event.index]
        if clip is not None and listed.output.stems:
            clip = clip.in_memory()
        made = _Made(event.index, plan, clip, timing, event.codes)
        if clip is None or clip.loop is None:
            self._put(event.index, made)
        else:
            first = self._first_take(event.index)
            group = range(first, first + listed.takes)
            for ranked in self._takes.add(event.index, clip.loop.measure.score, made, group, listed.kept):
                self._put(ranked.place, ranked.take)
        self._unfinished.discard(event.index)
        if event.index in self._spools:
            self._spools.pop(event.index).close()
        del self._plans[event.index]
        if self._player is not None:
            self._player.finish()
            self._player = None
        if self._progress.is_complete and total > 1:
            self._report(f"{total} clips, {self._progress}")

    def _report(self, line: str) -> None:
        with self._progress.beside():
            self._print(line)

    def _put(self, place: int | None, made: _Made, partial: bool = False) -> None:
        """Write a clip into the files of the request at `place`, and tell; None: it isn't kept.

        `partial`: it is the best only of those takes that were made before an interruption.
        """
        if place is None:
            return
        clip, plan, files, total = made.clip, made.plan, self._files[place], len(self._command.clips)
        seed, saved = plan.request.seed, None
        if clip is None or files.path is None:
            self._report(f"seed {seed}, {made.timing}")
        else:
            saved = self._save(place, made.index, clip, made.codes, partial)
            # From here on an interruption finds it whole, though its plot or its stems may be missing.
            self._unfinished.discard(made.index)
            self.paths.append(saved.path)
            self._report(f"wrote {saved}" if total == 1 else f"wrote {saved}, seed {seed}")
            if clip.loop is not None:
                self._report(str(clip.loop))
            if total == 1:
                self._report(f"seed {seed}, {made.timing}")
            if saved.peak > 1:
                self._report(f"peak {saved.peak:.2f} scaled down to full scale")
            if self._separator is not None and self._command.clips[place].output.stems:
                stems = self._save_stems(place, made.index, clip, saved, self._separator)
                self._report(f"its stems: {', '.join(map(str, stems))}")
        if clip is not None and files.plot is not None:
            from audiocraft_mlx.audio.plot import save_plot

            joins = () if clip.loop is None else (clip.loop.join,)
            prompt = plan.request.prompt
            save_plot(files.plot, clip.audio, clip.sample_rate, prompt, self._condition(plan), *joins)
            self._report(f"drew {files.plot}")
        if saved is not None and self._manifest is not None and not partial:
            self._manifest.append(self._manifest_line(made.index, saved))

    def _first_take(self, index: int) -> int:
        """Of the prompt of a request."""
        return index - self._command.clips[index].take

    def _finished(self, index: int, loop: Loop | None = None) -> FinishedAudio:
        plan, audio, rate = self._plans[index], self._spools[index], self._model.sample_rate
        output = self._command.clips[index].output
        return finish_audio(audio, rate, output, plan.source, plan.replacement, loop, plan.loop)

    def _save(
        self,
        place: int,
        index: int,
        clip: FinishedAudio,
        codes: ClipCodes | None = None,
        partial: bool = False,
    ) -> SavedFile:
        """Into the file of the request at `place`, with how that at `index` was made."""
        files = self._files[place]
        assert files.path is not None
        metadata = self._metadata(index)
        if metadata is not None and partial:
            metadata = replace(metadata, partial=True)
        return save_clip(files.resolve_path(files.path), clip, metadata, codes)

    def _save_stems(
        self, place: int, index: int, clip: FinishedAudio, saved: SavedFile, separator: HTDemucs
    ) -> list[Path]:
        paths = []
        for name, stem in separate_stems(clip, saved.peak, separator):
            path = saved.path.with_stem(f"{saved.path.stem}-{name}")
            paths.append(self._files[place].resolve_path(path))
            save_clip(paths[-1], stem, self._metadata(index))
        return paths

    def _metadata(self, index: int) -> GenerationMetadata | None:
        command = self._command
        return command.describe(command.clips[index]) if command.tags else None

    def _manifest_line(self, index: int, saved: SavedFile) -> dict[str, Any]:
        from audiocraft_mlx.clips.manifest import manifest_line

        clip, seconds = self._command.clips[index], saved.samples / saved.sample_rate
        return manifest_line(
            saved.path,
            self._command.describe(clip),
            seconds,
            saved.sample_rate,
            clip.line,
            clip.output.stems,
        )

    def _condition(self, plan: ClipPlan) -> Chromagram | StyleExcerpt | None:
        """For the plot of a clip: its melody's chromagram or its style's excerpt."""
        # A melody starts with the new music, and the plot doesn't show where in the clip or loop that is.
        if plan.source is not None or plan.loop is not None or plan.condition is plan.notes is None:
            return None
        from audiocraft_mlx.clips.conditions import describe_condition

        if plan.request.style is not None:
            return describe_condition(self._model, plan)
        key = (plan.condition or plan.notes, plan.request.duration)
        if key not in self._chromagrams:
            self._chromagrams[key] = describe_condition(self._model, plan)
        return self._chromagrams[key]

    def _open_stream(self, plan: ClipPlan) -> WavStream:
        model, bits = self._model, self._command.clips[plan.index].output.file_format().bits
        rate, channels = model.sample_rate, model.audio_channels
        assert bits is not None  # it is WAV
        if plan.source is None:
            return WavStream(sys.stdout.buffer, channels, rate, bits)
        source = plan.source.resampled(rate, channels)
        return ContinuationWavStream(sys.stdout.buffer, channels, rate, bits, source)

    def _report_clipping(self) -> None:
        stream = self._stream
        if stream is not None and stream.peak > 1 and self._command.clips[0].output.bit_depth != 32:
            print_stderr(f"peak {stream.peak:.2f} was cut off: a stream can't be scaled down afterwards")

    def _warn_unsupported_options(self) -> None:
        outputs = [clip.output for clip in self._command.clips]
        given = {
            "--normalize": any(output.normalize != "none" for output in outputs),
            "--ending": any(output.ending not in (None, "cut") for output in outputs),
            "--fade-out": any(output.fade_out is not None for output in outputs),
        }
        options = [option for option, is_given in given.items() if is_given]
        if options and (self._streaming or self._command.play):
            needs = "needs" if len(options) == 1 else "need"
            where = "on standard output" if self._streaming else "in what is played, not in the file"
            self._report(f"{' and '.join(options)} {needs} the whole clip: off {where}")
