"""Codes of songs: `python encode.py --songs 2400` → work/codes/. Makes what is missing, and held-out ones.

Of their stems: what plays beside a note doesn't change its codes. And of their mix, as of audio that the
model shall continue. A file has a hundred songs: their codes, attributes, and the frames where bars begin.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import processes
import torch
from codec import HOP, SAMPLE_RATE, Codec, autocast, own_parts, run_layers
from render import mix
from render_songs import excerpt_stems
from songs import SECONDS

from audiocraft_mlx.files import write_file

SONGS = 100
HELD_OUT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=2400)
    parser.add_argument("--codec", type=Path, default=Path("work/codec.pt"))
    parser.add_argument("--out", type=Path, default=Path("work/codes"))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    processes.run(encode, arguments.processes, arguments)


def encode(arguments: argparse.Namespace) -> None:
    codec = Codec()
    codec.load_state_dict(torch.load(arguments.codec)["codec"])
    codec.eval()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, count in (("held_out", HELD_OUT), ("train", arguments.songs)):
        for first in range(SONGS * processes.number(), count, SONGS * processes.count()):
            path = arguments.out / f"{name}-{first:05}.npz"
            if not path.exists():
                start = time.time()
                write(path, codec, range(first, min(first + SONGS, count)), name == "held_out")
                print(f"{path.name}: {time.time() - start:.0f} s", flush=True)


def write(path: Path, codec: Codec, numbers: range, held_out: bool) -> None:
    codes, of_mix, attributes, bars = [], [], [], []
    layers = list(codec.encodec.encoder.layers)
    lstm = next(i for i, layer in enumerate(layers) if type(layer).__name__ == "EncodecLSTM")
    with torch.inference_mode(), autocast():
        silence = run_layers(layers[:lstm], torch.zeros(1, 1, SECONDS * SAMPLE_RATE))
    for number in numbers:
        song, stems = excerpt_stems(number, held_out)
        with torch.inference_mode(), autocast():
            # One after the other up to the LSTM, of which all together take little more than one: three
            # quarters of the time of `codec.encode`.
            rows = [
                run_layers(layers[:lstm], torch.tensor(row)[None, None]) if row.any() else silence
                for row in (*stems, mix(stems))
            ]
            latents = run_layers(layers[lstm:], torch.cat(rows)).float()
            codes.append(codec.quantizer(own_parts(latents[:-1]))[2][0].numpy())
            of_mix.append(codec.quantizer(latents[-1:])[2][0].numpy())
        attributes.append(song.attributes.to_json())
        bars.append([round(seconds * SAMPLE_RATE / HOP) for seconds in song.bars])
    arrays = {
        "codes": np.stack(codes).astype(np.int16),
        "codes of mix": np.stack(of_mix).astype(np.int16),
        "attributes": np.array(json.dumps(attributes)),
        "bars": np.array(json.dumps(bars)),
    }
    write_file(path, lambda file: np.savez(file, **arrays))


if __name__ == "__main__":
    main()
