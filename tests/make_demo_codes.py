"""Held-out music for `test_demo.py`: `python tests/make_demo_codes.py` (needs torch and transformers).

The beginnings of four held-out songs as codes of the demo model's codec, their captions, and their mean
negative log-likelihood (nats, by codebook) in transformers, with which ours must agree.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "training"))

from render_songs import excerpt  # noqa: E402
from words import caption  # noqa: E402

SECONDS = 4


@torch.no_grad()
def main() -> None:
    folder = ROOT / "audiocraft_mlx" / "demo"
    model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    songs = [excerpt(number, held_out=True, seconds=SECONDS) for number in range(1000, 1004)]
    audio = torch.tensor(np.stack([audio for _, audio in songs]))[:, None]
    codes = model.audio_encoder.encode(audio).audio_codes[0]
    captions = [
        caption(song.attributes, random.Random(i), plain=True).text for i, (song, _) in enumerate(songs)
    ]

    batch, codebooks, frames = codes.shape
    special = model.decoder.config.vocab_size
    steps = frames + codebooks - 1
    sequence = torch.full((batch, codebooks, steps + 1), special)
    for k in range(codebooks):
        sequence[:, k, 1 + k : 1 + k + frames] = codes[:, k]
    text = tokenizer(captions, padding=True, return_tensors="pt")
    hidden = model.text_encoder(**text).last_hidden_state
    hidden = model.enc_to_dec_proj(hidden) * text.attention_mask[..., None]
    logits = model.decoder(
        input_ids=sequence[:, :, :-1].reshape(batch * codebooks, steps),
        encoder_hidden_states=hidden,
        encoder_attention_mask=text.attention_mask,
    ).logits.view(batch, codebooks, steps, special)
    log_probs = torch.log_softmax(logits, -1)
    nats = [
        -log_probs[:, k, k : k + frames].gather(-1, codes[:, k, :, None]).mean().item()
        for k in range(codebooks)
    ]
    np.savez_compressed(
        Path(__file__).with_name("demo_codes.npz"),
        codes=codes.numpy().astype(np.int16),
        captions=np.array(captions),
        nats=np.array(nats),
    )
    sys.stdout.write(f"{captions}\nnats by codebook: {np.round(nats, 3)}\n")


if __name__ == "__main__":
    main()
