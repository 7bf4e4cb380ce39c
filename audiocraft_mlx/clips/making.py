"""Makes clips: from the model's stream into files, standard output and the ear, while it comes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.plot import Chromagram, StyleExcerpt
from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.audio.wav_stream import ContinuationWavStream, WavStream
from audiocraft_mlx.audio.write import check_wav_size
from audiocraft_mlx.cli.arguments import PROMPT_SECONDS, STREAM
from audiocraft_mlx.cli.common import print_stderr, print_stdout
from audiocraft_mlx.cli.playing import Player
from audiocraft_mlx.cli.progress import progress_bar
from audiocraft_mlx.clips.finishing import Results, Written
from audiocraft_mlx.clips.inputs import Heard
from audiocraft_mlx.clips.planning import Clip
from audiocraft_mlx.clips.source import SourceClip

if TYPE_CHECKING:
    from audiocraft_mlx.models.genmodel import GenModel
    from audiocraft_mlx.networks.htdemucs import HTDemucs

# Of audio that comes at a time.
_CHUNK_SECONDS = 1.0
# More files aren't named in one line.
_MOST_NAMED = 3


class Making:
    """One call's way of making clips, a batch at a time."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        model: GenModel,
        heard: Heard | None = None,
        original: SourceClip | None = None,
        separator: HTDemucs | None = None,
    ) -> None:
        self._arguments, self._model = arguments, model
        self._heard, self._original = heard, original
        self._streaming = arguments.output == STREAM
        # Standard output belongs to the audio.
        self._tell: Callable[[str], None] = print_stderr if self._streaming else print_stdout
        self._hop = round(model.sample_rate / model.frame_rate)
        self._frames = int(arguments.duration * model.frame_rate)
        self._seconds = self._frames * self._hop / model.sample_rate
        self._prompt = None if original is None else self._tail(original)
        self._results = Results(arguments, model.sample_rate, original, separator, self._picture_of_heard)
        self._say_what_is_off()

    def make(self, batch: Sequence[Clip], total: int) -> list[Path]:
        """Make the clips of a batch, of `total` in all; the files that hold them.

        Raises:
            KeyboardInterrupt: it was interrupted; its message says what was kept.
            MusicGenError: what the model and the files raise.
        """
        for clip in batch:
            if clip.path is not None:
                self._check_size(clip.path)
        chunks = self._start(batch)
        recordings = [self._recording(clip) for clip in batch]
        player = self._player()
        start = time.perf_counter()
        try:
            interrupted = not self._run(chunks, recordings, player, len(batch), total)
            elapsed = time.perf_counter() - start
            if interrupted:
                if player:
                    player.stop()
                raise KeyboardInterrupt(self._keep(batch, recordings))
            paths = self._finish(batch, recordings, elapsed, total)
            if player:
                player.finish()
            return paths
        except BaseException:
            if player:
                player.stop()
            raise
        finally:
            for recording in recordings:
                if recording is not None:
                    recording.close()

    def _start(self, batch: Sequence[Clip]) -> Iterator[mx.array]:
        """The model's stream of audio `[clips, channels, n]`."""
        arguments, model = self._arguments, self._model
        duration = arguments.duration
        if self._prompt is not None and self._frames:
            # The model counts what it goes on from. Half a frame keeps rounding away.
            prompt_frames = -(-self._prompt.shape[1] // self._hop)
            duration = (prompt_frames + self._frames + 0.5) / model.frame_rate
        model.set_generation_params(
            duration=duration,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            temperature=arguments.temperature,
            cfg_coef=arguments.cfg_coef,
            cfg_coef_beta=arguments.style_coef,
            seed=batch[0].metadata.seed,
        )
        given: dict[str, Any] = {}
        if self._heard is not None:
            given = {
                "melody_wavs": [self._heard.audio] * len(batch),
                "melody_sample_rate": self._heard.rate,
            }
        if self._prompt is not None:
            given["prompt"] = np.broadcast_to(self._prompt, (len(batch), *self._prompt.shape))
            given["prompt_sample_rate"] = model.sample_rate
        prompts = [clip.metadata.prompt or None for clip in batch]
        return model.stream(prompts, chunk_seconds=_CHUNK_SECONDS, **given)

    def _run(
        self,
        chunks: Iterator[mx.array],
        recordings: Sequence[AudioSpool | None],
        player: Player | None,
        rows: int,
        total: int,
    ) -> bool:
        """Send the audio where it goes; False if that was interrupted."""
        label = "" if rows == total else f"{rows} of {total} clips "
        try:
            with progress_bar(self._seconds, rows, label) as show_progress:
                self._model.set_custom_progress_callback(show_progress)
                out = self._open_stream() if self._streaming else None
                for chunk in chunks:
                    audio = np.asarray(chunk)
                    for recording, row in zip(recordings, audio, strict=True):
                        if recording is not None:
                            recording.append(row)
                    if player:
                        player.feed(audio[0])
                    if out:
                        out.write(audio[0])
        except KeyboardInterrupt:
            return False
        if out and out.peak > 1 and self._arguments.bit_depth != 32:
            print_stderr(f"peak {out.peak:.2f} was cut off: what is heard already can't be scaled down")
        return True

    def _finish(
        self, batch: Sequence[Clip], recordings: Sequence[AudioSpool | None], elapsed: float, total: int
    ) -> list[Path]:
        speed = len(batch) * self._seconds / elapsed
        paths = []
        for clip, recording in zip(batch, recordings, strict=True):
            seed = clip.metadata.seed
            if clip.path is not None and recording is not None:
                written, stems = self._results.write(clip, recording)
                paths.append(written.path)
                self._tell(f"wrote {written}" if total == 1 else f"wrote {written}, seed {seed}")
                if total == 1:
                    self._tell(f"seed {seed}, {elapsed:.1f} s to make, {speed:.2f}x real time")
                self._tell_peak(written)
                if stems:
                    self._tell(f"its stems: {', '.join(map(str, stems))}")
            else:
                self._tell(f"seed {seed}, {elapsed:.1f} s to make, {speed:.2f}x real time")
            if clip.picture is not None and recording is not None:
                self._results.draw(clip, recording)
                self._tell(f"drew {clip.picture}")
        if total > 1:
            self._tell(f"{len(batch)} clips, {elapsed:.1f} s to make, {speed:.2f}x real time")
        return paths

    def _keep(self, batch: Sequence[Clip], recordings: Sequence[AudioSpool | None]) -> str:
        """Write what there is of clips that were interrupted; what there is to say about it."""
        made = [recording for recording in recordings if recording is not None and recording.samples]
        if self._streaming or not made:
            return ""
        kept = [
            str(self._results.write_unfinished(clip, recording).path)
            for clip, recording in zip(batch, made, strict=True)
        ]
        named = kept if len(kept) <= _MOST_NAMED else [kept[0], "…", kept[-1]]
        seconds = made[0].samples / self._model.sample_rate
        return f"interrupted; the {seconds:.2f} s made so far are kept in {', '.join(named)}"

    def _say_what_is_off(self) -> None:
        arguments = self._arguments
        whole = [
            option
            for option, given in (
                ("--normalize", arguments.normalize != "none"),
                ("--fade-out", arguments.fade_out is not None),
            )
            if given
        ]
        if not whole or not (self._streaming or arguments.play):
            return
        needs = "needs" if len(whole) == 1 else "need"
        where = "on standard output" if self._streaming else "in what is played, not in the file"
        self._tell(f"{' and '.join(whole)} {needs} the whole clip: off {where}")

    def _check_size(self, path: Path) -> None:
        model, original, format = self._model, self._original, self._arguments.chosen_format
        samples, channels = self._frames * self._hop, model.audio_channels
        if original is not None:
            format = original.format(format, self._arguments.bit_depth)
            rate = original.rate_in(format, model.sample_rate)
            samples = int((self._seconds + original.audio.shape[1] / original.rate) * rate)
            channels = max(channels, len(original.audio))
        check_wav_size(path, format, channels, samples)

    def _recording(self, clip: Clip) -> AudioSpool | None:
        path = clip.path or clip.picture
        return None if path is None else AudioSpool(self._model.audio_channels, path)

    def _player(self) -> Player | None:
        if not self._arguments.play:
            return None
        model = self._model
        player = Player(self._seconds, model.sample_rate, model.audio_channels, self._tell)
        if self._prompt is not None:
            player.feed_before(self._prompt)
        return player

    def _open_stream(self) -> WavStream:
        model, original, out = self._model, self._original, sys.stdout.buffer
        rate, channels, bits = model.sample_rate, model.audio_channels, self._arguments.chosen_format.bits
        if original is None:
            return WavStream(out, channels, rate, bits)
        return ContinuationWavStream(out, channels, rate, bits, original.at(rate, channels))

    def _tail(self, original: SourceClip) -> np.ndarray:
        seconds = self._arguments.prompt_seconds or PROMPT_SECONDS
        return original.tail(seconds, self._model.sample_rate, self._model.audio_channels, self._hop)

    def _picture_of_heard(self, seed: int) -> Chromagram | StyleExcerpt | None:
        """What the model hears, for the clip of that seed, of the melody or style that it was given."""
        if self._heard is None:
            return None
        from audiocraft_mlx.conditioning.melody import MelodyConditioner
        from audiocraft_mlx.conditioning.style import StyleConditioner

        model = self._model
        listener = model.audio_conditioner
        if isinstance(listener, MelodyConditioner):
            return self._chroma
        if not isinstance(listener, StyleConditioner):
            return None
        audio = self._heard_by_model
        if self._seconds > model.max_duration:  # the first window's
            audio = audio[:, mx.arange(int(model.max_duration * model.sample_rate)) % audio.shape[1]]
        excerpt, start = listener.excerpt(audio, model.style_params, seed)
        return StyleExcerpt(np.asarray(excerpt), model.sample_rate, start / model.sample_rate)

    @cached_property
    def _chroma(self) -> Chromagram:
        from audiocraft_mlx.conditioning.melody import MelodyConditioner

        listener = self._model.audio_conditioner
        assert isinstance(listener, MelodyConditioner)
        config = listener.config
        return Chromagram(
            np.asarray(listener.chroma(self._heard_by_model)), config.hop_length / config.sample_rate
        )

    @cached_property
    def _heard_by_model(self) -> mx.array:
        assert self._heard is not None
        from audiocraft_mlx.audio.resample import convert_audio

        model = self._model
        audio = self._heard.audio[:, : int(model.max_condition_duration * self._heard.rate)]
        return mx.array(convert_audio(audio, self._heard.rate, model.sample_rate, model.audio_channels))

    def _tell_peak(self, written: Written) -> None:
        if written.peak > 1:
            self._tell(f"peak {written.peak:.2f} scaled down to full scale")
