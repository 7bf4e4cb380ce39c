"""transformers' side of the benchmark: the only file that imports torch, and only in a process of its own."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import gc
import os
import time

import numpy as np
import torch
from transformers import (
    ClassifierFreeGuidanceLogitsProcessor,
    DynamicCache,
    EncodecConfig,
    EncoderDecoderCache,
    GenerationConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
    TopKLogitsWarper,
)
from transformers.utils import logging

from audiocraft_mlx.benchmark import measure
from audiocraft_mlx.benchmark.export import Exported, export
from audiocraft_mlx.benchmark.side import GUIDANCE, PROMPT, SAMPLING, STEPS, WARM_UP_STEPS
from audiocraft_mlx.benchmark.subject import Subject
from audiocraft_mlx.checkpoints.bundle import ModelBundle


class Theirs:
    """See `Side`. On a GPU in half precision, on a CPU with OMP_NUM_THREADS threads, or all it has."""

    def __init__(self, checkpoint: ModelBundle) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_grad_enabled(False)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(measure.cores())  # torch's own default is half of them, at times
        torch.manual_seed(0)
        self._device = _device()
        tokens, mask = checkpoint.text_conditioner.tokenize([PROMPT])
        self._tokens = torch.from_numpy(tokens).long().to(self._device)
        self._mask = torch.from_numpy(mask).long().to(self._device)
        self._frame_rate = checkpoint.codec.frame_rate
        self.model = build(export(checkpoint)).to(self._device)
        if self._device != "cpu":
            self.model.half()
        self._config = self.model.config.decoder

    def encode_text(self) -> float:
        return measure.seconds(self._hidden_states)

    def step(self, second: float) -> float:
        offset = max(0, int(second * self._frame_rate) - WARM_UP_STEPS - STEPS)
        decoder = self.model.decoder
        hidden = self._hidden_states().to(self._device)
        # As their `generate` does it: the rows without text are zeros.
        hidden = torch.cat([hidden, torch.zeros_like(hidden)])
        cache = self._filled_cache(offset)
        guide = ClassifierFreeGuidanceLogitsProcessor(GUIDANCE.coef)
        keep_top = TopKLogitsWarper(SAMPLING.top_k)
        codes = torch.full((self._config.num_codebooks, 1), self._config.pad_token_id, device=self._device)
        done = []
        for _ in range(WARM_UP_STEPS + STEPS):
            logits = decoder(
                input_ids=codes.repeat(2, 1),
                encoder_hidden_states=hidden,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            scores = keep_top(codes, guide(codes, logits.float()))
            codes = torch.multinomial(torch.softmax(scores, dim=-1), 1)
            codes.cpu()  # waits for the device, as their criteria for stopping do
            done.append(time.perf_counter())
        return (done[-1] - done[WARM_UP_STEPS - 1]) / STEPS

    def decode(self, duration: float) -> float:
        frames = max(1, int(duration * self._frame_rate))
        size = (1, self._config.num_codebooks, frames)
        codes = torch.randint(self._config.vocab_size, size, device=self._device)
        return measure.seconds(lambda: self.audio(codes))

    def generate(self, duration: float) -> float:
        frames = max(1, int(duration * self._frame_rate))

        def work() -> None:
            self.model.generate(
                input_ids=self._tokens,
                attention_mask=self._mask,
                do_sample=True,
                top_k=SAMPLING.top_k,
                temperature=SAMPLING.temperature,
                guidance_scale=GUIDANCE.coef,
                max_new_tokens=frames + self._config.num_codebooks // self._config.audio_channels - 1,
            ).cpu()

        return measure.seconds(work)

    def peak_memory(self) -> float:
        return measure.peak_memory()

    def audio(self, codes: torch.Tensor) -> torch.Tensor:
        """Audio `[1, C, T]` of codes `[1, K, F]`: as in their `generate`, one channel after the other."""
        channels = self._config.audio_channels
        parts = [
            self.model.audio_encoder.decode(codes[None, :, c::channels], audio_scales=[None]).audio_values
            for c in range(channels)
        ]
        return torch.cat(parts, dim=1).cpu()

    def _hidden_states(self) -> torch.Tensor:
        encoder = self.model.text_encoder(input_ids=self._tokens, attention_mask=self._mask)
        hidden = encoder.last_hidden_state
        if hasattr(self.model, "enc_to_dec_proj"):
            hidden = self.model.enc_to_dec_proj(hidden)
        return hidden.cpu()

    def _filled_cache(self, positions: int) -> EncoderDecoderCache:
        """What they remember after so many positions: nothing, in as many numbers."""
        cache = DynamicCache()
        heads = self._config.num_attention_heads
        shape = (2, heads, positions, self._config.hidden_size // heads)
        for layer in range(self._config.num_hidden_layers if positions else 0):
            nothing = torch.zeros(shape, device=self._device, dtype=self.model.decoder.dtype)
            cache.update(nothing, nothing.clone(), layer)
        return EncoderDecoderCache(cache, DynamicCache())


def build(exported: Exported) -> MusicgenForConditionalGeneration:
    """transformers' model, float32 on the CPU, with the exported weights, which it empties."""
    config = MusicgenConfig(
        text_encoder=T5Config(**exported.text_encoder).to_dict(),
        decoder=MusicgenDecoderConfig(**exported.decoder).to_dict(),
        audio_encoder=EncodecConfig(**exported.audio_encoder).to_dict(),
    )
    weights = exported.weights
    state = {name: torch.from_numpy(np.array(weights.pop(name))).float() for name in list(weights)}
    model, found = MusicgenForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    wrong = {kind: names for kind, names in found.items() if names}
    if wrong:
        raise ValueError(f"the exported weights don't fit transformers' model: {wrong}")
    # As in the generation_config.json of the released models.
    special = config.decoder.pad_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=special, decoder_start_token_id=special, pad_token_id=special, max_length=1500
    )
    return model.eval()


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


_side: Theirs | None = None
"""The one of this process, which there is for nothing else (`companion.py`)."""


def start(subject: Subject) -> None:
    """Load the subject; the memory that this takes doesn't count."""
    global _side
    _side = Theirs(subject.read())
    gc.collect()
    measure.forget_peak_memory()


def call(method: str, *arguments: float) -> float:
    """Call a method of `Side`."""
    result: float = getattr(_side, method)(*arguments)
    return result
