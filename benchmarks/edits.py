"""Whether the take that is chosen for a replaced part joins better: `python benchmarks/edits.py` (20 min).

Parts of 50 clips of the demo model are made anew, in 8 takes each, half of them to another text. The flux of
the join of the take that is chosen is compared with that of one of the others, drawn at random, at the end of
the part, where the model doesn't see what it joins. All are joined in the same way. `--cases N` makes fewer.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import mlx.core as mx
import numpy as np

from audiocraft_mlx import MusicGen
from audiocraft_mlx.audio.flux import log_spectra, reference_level
from audiocraft_mlx.audio.join import join_flux
from audiocraft_mlx.audio.part import crossfade_part
from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.models.replaced_part import candidate_seeds, choose_take, join_fluxes, losses_of_takes

TEXTS = (
    "slow happy piano",
    "fast sad guitar",
    "marimba with a dance beat",
    "sad strings",
    "fast happy marimba",
)
SECONDS, CANDIDATES = 6.0, 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=50)
    cases = parser.parse_args().cases
    model, random = MusicGen.get_pretrained("demo"), np.random.default_rng(0)
    texts = [TEXTS[case % len(TEXTS)] for case in range(cases)]
    model.set_generation_params(duration=SECONDS, seed=1)
    made = [model.generate(texts[start : start + 10], return_tokens=True) for start in range(0, cases, 10)]
    clips = np.concatenate([np.array(audio) for audio, _ in made])
    codes = np.concatenate([np.array(codes) for _, codes in made])
    won, by_loss, ranks = 0, 0, []
    for case in range(cases):
        start = float(random.uniform(1.8, 2.8))
        part = (round(start, 2), round(start + random.uniform(0.8, 1.4), 2))
        text = texts[case] if case % 2 else TEXTS[int(random.integers(len(TEXTS)))]
        fluxes, losses, best = _takes(model, clips[case], codes[case], part, text, 1000 + case)
        other = int(random.choice([take for take in range(CANDIDATES) if take != best]))
        likeliest = int(losses.argmin())
        won += fluxes[best] < fluxes[other]
        by_loss += likeliest != other and fluxes[likeliest] < fluxes[other]
        ranks.append(int((fluxes < fluxes[best]).sum()))
        print_stdout(
            f"{case} {texts[case]} → {text}, {part[0]:.2f}-{part[1]:.2f} s: loss {losses[best]:.3f} of "
            f"{losses.min():.3f} to {losses.max():.3f}, flux {fluxes[best]:.3f} of {fluxes.min():.3f} to "
            f"{fluxes.max():.3f}, a random one {fluxes[other]:.3f}"
        )
    print_stdout(
        f"\n{cases} cases: the chosen take's join is heard less than a random one's in "
        f"{100 * won / cases:.0f} %; of {CANDIDATES} takes its join is on average number "
        f"{1 + np.mean(ranks):.1f}; by the loss alone {100 * by_loss / cases:.0f} %"
    )


def _takes(
    model: MusicGen, clip: np.ndarray, codes: np.ndarray, part: tuple[float, float], text: str, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """The flux of each take's join, its loss, and which is chosen."""
    rate = model.sample_rate
    inputs = model.prepare_infill(
        [text], [seed], [clip], rate, [part], model.params, codes=[codes], candidates=CANDIDATES
    )
    of_part = inputs.part
    assert of_part is not None
    assert inputs.prompt is not None
    takes: list[mx.array] = []
    rows = replace(inputs, part=None).repeated(candidate_seeds(seed, CANDIDATES))
    params = model.make_params(duration=(inputs.prompt_frames + of_part.made_frames + 0.5) / model.frame_rate)
    for _ in model.generate_stream(rows, params, on_codes=takes.append):
        pass
    joined = mx.concatenate(takes, axis=2)
    losses = losses_of_takes(
        model.lm,
        model.text_conditioner.encode([None]),
        inputs.prompt,
        joined[:, :, : of_part.frames],
        of_part.following,
        int(model.max_duration * model.frame_rate),
    )

    def fluxes_of(alike: list[int]) -> list[float]:
        chosen = joined[mx.array(alike)]
        return join_fluxes(model.compression_model, inputs.prompt, chosen, of_part.around[0], of_part.margin)

    best = choose_take(losses, fluxes_of)
    audio = np.array(model.generate_audio(mx.concatenate([rows.prompt, joined], axis=2)))
    reference, fluxes = reference_level(clip, rate), []
    first = (of_part.new_start + of_part.margin - inputs.prompt_frames) / model.frame_rate
    for take in audio:
        result = crossfade_part(clip, rate, *part, take, rate, first, rate)
        begin, end = result.fades[-1]
        spectra = log_spectra(result.audio, rate, reference)
        fluxes.append(join_flux(spectra, begin / rate, end / rate))
    return np.array(fluxes), losses, best


if __name__ == "__main__":
    main()
