"""Write the trained networks as one float16 transformers model: `python write_checkpoint.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from codec import BLOCK, CODEBOOKS, CODES, DIMENSION
from model import make_model
from song import STEMS
from text_tokenizer import TOKENIZER
from train_lm import FRAMES
from transformers import PreTrainedTokenizerFast

# Found with evaluate_songs.py.
SAMPLING = {"do_sample": True, "top_k": 50, "temperature": 1.0, "guidance_scale": 3.0}
DEMO = Path(__file__).resolve().parent.parent / "audiocraft_mlx" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--codec", type=Path, default=Path("work/codec.pt"))
    parser.add_argument("--lm", type=Path, default=Path("work/lm.pt"))
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--out", type=Path, default=DEMO)
    arguments = parser.parse_args()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.tokenizer)
    model = make_model(len(tokenizer))
    state = model.state_dict() | torch.load(arguments.lm)["average"]
    codec = torch.load(arguments.codec)["codec"]
    for name in state:
        if name.startswith("audio_encoder."):
            state[name] = codec_tensor(name.removeprefix("audio_encoder."), codec).reshape(state[name].shape)
    model.load_state_dict(state)
    generation = model.generation_config
    generation.update(
        **SAMPLING,
        max_length=FRAMES + CODEBOOKS,
        bos_token_id=CODES,
        pad_token_id=CODES,
        decoder_start_token_id=CODES,
    )
    model.config.max_duration = FRAMES / 50  # our own key: transformers has none for the trained length
    model.half().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


def codec_tensor(name: str, codec: dict[str, torch.Tensor]) -> torch.Tensor:
    """A tensor of transformers' EnCodec, with weight norm, from the trained codec, which has none."""
    part, _, last = name.rpartition(".")
    if part.startswith("quantizer."):
        k = int(part.split(".")[2])
        ours = {"embed": "codebooks", "embed_avg": "sums", "cluster_size": "sizes"}
        if last not in ours:
            return torch.ones(1)
        value = codec[f"quantizer.{ours[last]}"][k]
        if value.ndim == 1:
            return value
        before = k % len(STEMS) * BLOCK
        return F.pad(value, (before, DIMENSION - BLOCK - before))
    weight = part.removesuffix(".parametrizations.weight")
    if weight == part:
        return codec[f"encodec.{name}"]
    value = codec[f"encodec.{weight}.weight"]
    return value if last == "original1" else value.flatten(1).norm(dim=1)


if __name__ == "__main__":
    main()
