"""transformers as a benchmark backend: the only file that imports torch, and only in a process of its own."""

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
from audiocraft_mlx.benchmark.backend import GUIDANCE, PROMPT, SAMPLING, TIMED_STEPS, WARM_UP_STEPS
from audiocraft_mlx.benchmark.model import BenchmarkModel
from audiocraft_mlx.benchmark.transformers_model import TransformersModel, to_transformers
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.machine import num_cpus


class TransformersBackend:
    """See `Backend`. float16 on a GPU; float32 on a CPU, with OMP_NUM_THREADS threads (default: all)."""

    def __init__(self, bundle: ModelBundle) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_grad_enabled(False)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(num_cpus())  # torch's default is sometimes half of them
        torch.manual_seed(0)
        self._device = _device()
        tokens, mask = bundle.text_conditioner.tokenize([PROMPT])
        self._tokens = torch.from_numpy(tokens).long().to(self._device)
        self._mask = torch.from_numpy(mask).long().to(self._device)
        self._frame_rate = bundle.codec.frame_rate
        self.model = build_model(to_transformers(bundle)).to(self._device)
        if self._device != "cpu":
            self.model.half()
        self._config = self.model.config.decoder

    def encode_text(self) -> float:
        return measure.seconds(self._hidden_states)

    def step(self, second: float) -> float:
        offset = max(0, int(second * self._frame_rate) - WARM_UP_STEPS - TIMED_STEPS)
        decoder = self.model.decoder
        hidden = self._hidden_states().to(self._device)
        # As in their `generate`: zeros for the unconditional rows.
        hidden = torch.cat([hidden, torch.zeros_like(hidden)])
        cache = self._prefilled_cache(offset)
        guidance = ClassifierFreeGuidanceLogitsProcessor(GUIDANCE.coef)
        top_k = TopKLogitsWarper(SAMPLING.top_k)
        codes = torch.full((self._config.num_codebooks, 1), self._config.pad_token_id, device=self._device)
        step_ends = []
        for _ in range(WARM_UP_STEPS + TIMED_STEPS):
            logits = decoder(
                input_ids=codes.repeat(2, 1),
                encoder_hidden_states=hidden,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            scores = top_k(codes, guidance(codes, logits.float()))
            codes = torch.multinomial(torch.softmax(scores, dim=-1), 1)
            codes.cpu()  # waits for the device, as their stopping criteria do
            step_ends.append(time.perf_counter())
        return (step_ends[-1] - step_ends[WARM_UP_STEPS - 1]) / TIMED_STEPS

    def decode(self, duration: float) -> float:
        frames = max(1, int(duration * self._frame_rate))
        size = (1, self._config.num_codebooks, frames)
        codes = torch.randint(self._config.vocab_size, size, device=self._device)
        return measure.seconds(lambda: self.decode_audio(codes))

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

    def decode_audio(self, codes: torch.Tensor) -> torch.Tensor:
        """Audio `[1, C, samples]` of codes `[1, K, F]`, one channel at a time as in their `generate`."""
        channels = self._config.audio_channels
        audio = [
            self.model.audio_encoder.decode(codes[None, :, c::channels], audio_scales=[None]).audio_values
            for c in range(channels)
        ]
        return torch.cat(audio, dim=1).cpu()

    def _hidden_states(self) -> torch.Tensor:
        encoder = self.model.text_encoder(input_ids=self._tokens, attention_mask=self._mask)
        hidden = encoder.last_hidden_state
        if hasattr(self.model, "enc_to_dec_proj"):
            hidden = self.model.enc_to_dec_proj(hidden)
        return hidden.cpu()

    def _prefilled_cache(self, positions: int) -> EncoderDecoderCache:
        """A cache with the keys and values of `positions` positions, all zeros."""
        cache = DynamicCache()
        heads = self._config.num_attention_heads
        shape = (2, heads, positions, self._config.hidden_size // heads)
        for layer in range(self._config.num_hidden_layers if positions else 0):
            zeros = torch.zeros(shape, device=self._device, dtype=self.model.decoder.dtype)
            cache.update(zeros, zeros.clone(), layer)
        return EncoderDecoderCache(cache, DynamicCache())


def build_model(converted: TransformersModel) -> MusicgenForConditionalGeneration:
    """The model in float32 on the CPU. Removes the weights from `converted` as they are copied."""
    config = MusicgenConfig(
        text_encoder=T5Config(**converted.text_encoder).to_dict(),
        decoder=MusicgenDecoderConfig(**converted.decoder).to_dict(),
        audio_encoder=EncodecConfig(**converted.audio_encoder).to_dict(),
    )
    weights = converted.weights
    state = {name: torch.from_numpy(np.array(weights.pop(name))).float() for name in list(weights)}
    model, loading_info = MusicgenForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    mismatches = {kind: names for kind, names in loading_info.items() if names}
    if mismatches:
        raise ValueError(f"the converted weights don't fit transformers' model: {mismatches}")
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


_backend: TransformersBackend | None = None
"""The one of this process, which exists for it alone (`transformers_process.py`)."""


def start(model: BenchmarkModel) -> None:
    """Load the model. The memory that loading takes isn't counted."""
    global _backend
    _backend = TransformersBackend(model.read())
    gc.collect()
    measure.reset_peak_memory()


def call(method: str, *arguments: float) -> float:
    """Call a method of `Backend`."""
    result: float = getattr(_backend, method)(*arguments)
    return result
