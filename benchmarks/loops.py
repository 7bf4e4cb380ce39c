"""How much the joins of 100 loops of the demo model are heard: `python benchmarks/loops.py` (10 minutes).

Each loop is compared with a plain cut: the first seconds of the same music, repeated. And with what a model
that fills masks does to it, as far as that can be measured without one: the hole over its join is filled with
what the codec makes of the loop itself, and with the loop before. `--loops N` makes fewer.
"""

from __future__ import annotations

import argparse
from itertools import cycle, islice

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.beat import find_beat
from audiocraft_mlx.audio.flux import log_spectra
from audiocraft_mlx.audio.loop import MOST_BEAT_ERROR, Loop, LoopMeasure, fill_join, measure_loop
from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.clips.making import Chunk, Finished, generate_clips
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.models.loop_join import join_hole, seen_frames
from audiocraft_mlx.models.musicgen import MusicGen

PROMPTS = (
    "fast happy piano with drums",
    "slow sad strings",
    "marimba with a dance beat",
    "a calm guitar tune",
    "energetic synth, bass and drums",
    "slow organ in a minor key",
    "medium tempo flute with bass",
    "sad bells without drums",
)
# Bars and beats per minute. The demo model plays at 75, 100 or 150, whatever it is asked for.
LENGTHS = ((4, 120.0), (2, 100.0), (4, 150.0), (2, 75.0), (2, 90.0))
FIRST_SEED = 1000
# Of a MAGNeT's masks.
SPAN_FRAMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", type=int, default=100)
    count = parser.parse_args().loops
    model = MusicGen.get_pretrained("demo")
    requests = [
        ClipRequest(prompt, seed=FIRST_SEED + index, loop=True, bars=bars, bpm=bpm)
        for index, (prompt, (bars, bpm)) in enumerate(
            islice(zip(cycle(PROMPTS), cycle(LENGTHS), strict=False), count)
        )
    ]
    chunks: dict[int, list[np.ndarray]] = {}
    loops, cuts, stretches = list[LoopMeasure](), list[LoopMeasure](), list[float]()
    by_codec, by_other, other = list[LoopMeasure](), list[LoopMeasure](), None
    rate = model.sample_rate
    for event in generate_clips(model, requests):
        if isinstance(event, Chunk):
            chunks.setdefault(event.index, []).append(event.audio)
        elif isinstance(event, Finished):
            request = requests[event.index]
            audio = np.concatenate(chunks.pop(event.index), axis=1)
            loop = event.loop
            assert loop is not None
            samples = round(request.duration * rate)
            assert loop.audio.shape[1] == samples
            cut = audio[:, :samples]
            loops.append(loop.measure)
            stretches.append(abs(loop.stretch))
            cuts.append(measure_loop(cut, rate, (0, 0), find_beat(log_spectra(audio, rate))))
            by_codec.append(_filled(model, loop, loop))
            if other is not None:
                by_other.append(_filled(model, loop, other))
            other = loop
            print_stdout(f"{event.index} {request.prompt} {_line(loop.measure)} {_line(cuts[-1])}")
    stretched = [stretch for stretch in stretches if stretch > 1e-6]
    print_stdout(
        f"\n{count} loops, {len(stretched)} stretched, by up to {100 * max(stretched, default=0):.1f} %"
    )
    kinds = {"loops": loops, "plain cuts": cuts, "holes from the codec": by_codec, "of other music": by_other}
    for name, measures in kinds.items():
        scores = np.array([measure.join.score for measure in measures])
        errors = np.array([abs(m.beat_error) for m in measures if m.beat_error is not None])
        steps = np.array([measure.join.step / measure.join.largest_step for measure in measures])
        print_stdout(
            f"{name}: flux beside that of the beats: median {np.median(scores):.2f}, 95 % below "
            f"{np.percentile(scores, 95):.2f}, highest {scores.max():.2f}; above 1: {(scores > 1).sum()}; "
            f"clicks: {(steps > 1).sum()}; highest step {steps.max():.2f}; with a beat: {len(errors)}, "
            f"off by more than 20 ms: {(errors > MOST_BEAT_ERROR).sum()}, "
            f"highest {1000 * errors.max(initial=0):.0f} ms"
        )


def _filled(model: MusicGen, loop: Loop, other: Loop) -> LoopMeasure:
    """Of `loop` with what the codec makes of `other` in the hole over its join."""
    rate, hop = model.sample_rate, round(model.sample_rate / model.frame_rate)
    samples, longest = loop.audio.shape[1], int(model.max_duration * model.frame_rate)
    hole = join_hole(loop, rate, hop, seen_frames(samples, hop, longest, SPAN_FRAMES), SPAN_FRAMES)
    view = mx.array(hole.view(other.audio)[None])
    audio = np.array(model.compression_model.decode(model.compression_model.encode(view)))[0]
    new = audio[:, hole.before * hop : (hole.before + hole.frames) * hop]
    return fill_join(loop, rate, hole.start, new).measure


def _line(measure: LoopMeasure) -> str:
    beat = "no beat" if measure.beat_error is None else f"{1000 * measure.beat_error:.0f} ms"
    return f"| {measure.join.score:.2f} {beat} step {measure.join.step / measure.join.largest_step:.2f}"


if __name__ == "__main__":
    main()
