"""One random model twice: transformers', and ours loaded from the checkpoint that transformers saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from transformers import (
    EncodecConfig,
    EncodecModel,
    GenerationConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

from audiocraft_mlx.benchmark.model import ENCODEC_32KHZ, T5_BASE
from audiocraft_mlx.decoding.guidance import apply_guidance
from audiocraft_mlx.decoding.windows import Window
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.encodec import InterleavedStereoCodec

SHORT_PROMPT = "a slow piano piece"
LONG_PROMPT = "an energetic drum and bass track with a deep bass line and bright synths"

DecoderConfig = MusicgenDecoderConfig | MusicgenMelodyDecoderConfig
Theirs = MusicgenForConditionalGeneration | MusicgenMelodyForConditionalGeneration


def t5_base() -> T5Config:
    return T5Config(vocab_size=32128, **T5_BASE)


def encodec_32khz(**changes: Any) -> EncodecConfig:
    """The shape of the released codec, with `changes`."""
    return EncodecConfig(**ENCODEC_32KHZ | changes)


def build(t5: T5Config, decoder: DecoderConfig, codec: EncodecConfig, seed: int) -> Theirs:
    """A random model in which every weight affects the output: no zeros or ones, none negligible."""
    torch.manual_seed(seed)
    parts = {"text_encoder": t5.to_dict(), "decoder": decoder.to_dict(), "audio_encoder": codec.to_dict()}
    if isinstance(decoder, MusicgenMelodyDecoderConfig):
        model = MusicgenMelodyForConditionalGeneration(MusicgenMelodyConfig(**parts)).eval()
    else:
        model = MusicgenForConditionalGeneration(MusicgenConfig(**parts)).eval()
    _randomize(model)
    # As in the generation_config.json of the released models.
    special = decoder.vocab_size
    model.generation_config = GenerationConfig(
        bos_token_id=special,
        decoder_start_token_id=special,
        pad_token_id=special,
        do_sample=True,
        guidance_scale=3.0,
        max_length=1500,
    )
    return model


@torch.no_grad()
def _randomize(model: Theirs) -> None:
    for name, tensor in model.named_parameters():
        if name.endswith("norm.weight"):
            tensor.add_(torch.randn_like(tensor), alpha=0.1)
        elif name.endswith("bias") or ".bias_" in name:
            tensor.normal_(std=0.1)
        elif name.endswith("relative_attention_bias.weight"):
            tensor.normal_()
        elif name.startswith(("text_encoder.", "audio_encoder.")):
            pass  # transformers' initialization is fine
        elif ".embed_tokens." in name:
            tensor.normal_(std=2)
        else:
            gain = 3 if "lm_heads" in name else 0.7
            tensor.normal_(std=gain * tensor.shape[1] ** -0.5)
    _randomize_codebooks(model.audio_encoder)


def _randomize_codebooks(codec: EncodecModel) -> None:
    """Entries about as large as the residuals that they quantize."""
    noise = torch.randn(1, codec.config.audio_channels, 32 * codec.config.hop_length)
    size = codec.encoder(noise).std()
    for layer in codec.quantizer.layers:
        layer.codebook.embed.normal_().mul_(size)
        size = size / 2


@dataclass(frozen=True)
class Melody:
    wav: np.ndarray
    """`[1, samples]` at the model's rate."""
    features: torch.Tensor
    """Its chroma by transformers, `[frames, 12]`."""


Melodies = Sequence[Melody] | None
"""One for each prompt, all of the same length; or None."""


@dataclass(frozen=True)
class GreedyOutput:
    codes: np.ndarray
    """`[B, K, frames]`"""
    audio: np.ndarray
    """`[B, C, samples]`"""
    gap: float
    """The smallest difference between the two highest logits of any generated code."""


class Pair:
    """`theirs`, and `ours` loaded from the `folder` that it was saved in; both use the file `tokenizer`."""

    def __init__(self, theirs: Theirs, folder: Path, tokenizer: Path) -> None:
        shutil.copy(tokenizer, folder / "tokenizer.json")
        self.theirs = theirs
        self.ours = MusicGen.get_pretrained(str(folder))
        self._tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer), pad_token="<pad>", eos_token="</s>"
        )

    @property
    def num_codebooks(self) -> int:
        return self.theirs.config.decoder.num_codebooks

    @property
    def channels(self) -> int:
        return self.theirs.config.decoder.audio_channels

    @property
    def cardinality(self) -> int:
        return self.theirs.config.decoder.vocab_size

    @property
    def has_melody(self) -> bool:
        return isinstance(self.theirs, MusicgenMelodyForConditionalGeneration)

    def inputs(self, prompts: Sequence[str | None], melodies: Melodies = None) -> dict[str, Any]:
        """The arguments of their `generate` for `prompts`; a prompt None is unconditional."""
        if all(prompt is None for prompt in prompts) and not self.has_melody:
            inputs = self.theirs.get_unconditional_inputs(len(prompts))
            return {name: inputs[name] for name in ("encoder_outputs", "attention_mask")}
        inputs = self._tokenizer([prompt or "" for prompt in prompts], padding=True, return_tensors="pt")
        for row, prompt in enumerate(prompts):
            if prompt is None:
                inputs["attention_mask"][row] = 0
        arguments = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if melodies is not None:
            arguments["input_features"] = torch.stack([melody.features for melody in melodies])
        return arguments

    def _comparable(self, prompts: Sequence[str | None]) -> list[int]:
        """The rows of a batch of `prompts` for which both models must agree.

        Prepended text is padded in a batch; their melody model attends to this padding, ours masks it.
        """
        if not self.has_melody:
            return list(range(len(prompts)))
        lengths = [len(self._tokenizer(prompt or "")["input_ids"]) for prompt in prompts]
        return [row for row, length in enumerate(lengths) if length == max(lengths)]

    def check_greedy(
        self, prompts: Sequence[str | None], frames: int, guidance: float, melodies: Melodies = None
    ) -> GreedyOutput:
        """Assert that both generate the same codes and the same audio; returns theirs."""
        wanted = self._their_greedy(prompts, frames, guidance, melodies)
        # Far above float32 rounding, 5e-6, which could otherwise change a code.
        assert wanted.gap > 1e-4
        # Half a frame more, so that rounding doesn't remove one.
        duration = (frames + 0.5) / self.ours.frame_rate
        self.ours.set_generation_params(use_sampling=False, duration=duration, cfg_coef=guidance)
        if melodies is None:
            audio, codes = self.ours.generate(prompts, return_tokens=True)
        else:
            wavs = [melody.wav for melody in melodies]
            audio, codes = self.ours.generate_with_chroma(
                prompts, wavs, self.ours.sample_rate, return_tokens=True
            )
        rows = self._comparable(prompts)
        np.testing.assert_array_equal(np.array(codes)[rows], wanted.codes[rows])
        assert relative_error(audio[mx.array(rows)], wanted.audio[rows]) < 1e-3
        return wanted

    @torch.no_grad()
    def _their_greedy(
        self, prompts: Sequence[str | None], frames: int, guidance: float, melodies: Melodies
    ) -> GreedyOutput:
        codec, delays = self.theirs.audio_encoder, self.num_codebooks // self.channels - 1
        decode: Callable[..., Any] = codec.decode
        decoded: list[np.ndarray] = []
        if all(prompt is None for prompt in prompts) and not self.has_melody:
            guidance = 1  # both branches are the same; their unconditional inputs don't allow guidance

        def record(codes: torch.Tensor, **options: Any) -> Any:
            decoded.append(codes[0].numpy())
            return decode(codes, **options)

        # `generate` doesn't return the codes.
        codec.decode = record
        try:
            result = self.theirs.generate(
                **self.inputs(prompts, melodies),
                do_sample=False,
                guidance_scale=guidance,
                max_new_tokens=frames + delays,
                return_dict_in_generate=True,
                output_scores=True,
            )
        finally:
            del codec.decode
        # It decodes channel by channel; the codebooks are interleaved.
        codes = np.stack(decoded, axis=2).reshape(len(prompts), self.num_codebooks, -1)
        scores = torch.stack(result.scores, dim=1).unflatten(0, (len(prompts), -1))
        best = scores.topk(2).values
        gaps = (best[..., 0] - best[..., 1])[self._comparable(prompts)]
        # Predictions before a codebook's first frame and after its last are not used.
        starts = [k // self.channels for k in range(self.num_codebooks)]
        kept = [gaps[:, k, start : start + frames].min() for k, start in enumerate(starts)]
        return GreedyOutput(codes, result.sequences.numpy(), float(min(kept)))

    def check_hidden_states(self, prompts: Sequence[str]) -> None:
        """Assert that both T5s have the same hidden states."""
        inputs = self.inputs(prompts)
        with torch.no_grad():
            wanted = self.theirs.text_encoder(**inputs).last_hidden_state.numpy()
        tokens, mask = self.ours.text_conditioner.tokenize(prompts)
        np.testing.assert_array_equal(tokens, inputs["input_ids"].numpy())
        np.testing.assert_array_equal(mask, inputs["attention_mask"].numpy().astype(bool))
        hidden = np.array(self.ours.text_conditioner.t5(mx.array(tokens), mx.array(mask)))
        np.testing.assert_allclose(hidden[mask], wanted[mask], rtol=1e-4, atol=1e-4)

    def check_logits(self, prompts: Sequence[str], steps: int, melodies: Melodies = None) -> None:
        """Assert equal logits for random codes: conditional, unconditional and guided."""
        rng = np.random.default_rng(0)
        codes = rng.integers(0, self.cardinality + 1, (len(prompts), self.num_codebooks, steps))
        rows = self._comparable(prompts)
        inputs = self.inputs(prompts, melodies)
        unconditional = self.inputs(prompts) | {"attention_mask": torch.zeros_like(inputs["attention_mask"])}
        with torch.no_grad():
            cond, null = (
                # The logits of prepended conditions, if any, come first.
                self.theirs(
                    **given, decoder_input_ids=torch.from_numpy(codes).flatten(0, 1)
                ).logits.unflatten(0, (len(prompts), -1))[rows, :, -steps:]
                for given in (inputs, unconditional)
            )
        conditions = self._our_conditions(prompts, melodies)
        assert conditions.unconditional is not None
        both = conditions.concat_batch(conditions.unconditional)
        doubled = mx.array(np.concatenate([codes, codes]))
        our_cond, our_null = (
            logits[mx.array(rows)]
            for logits in mx.split(self.ours.lm(doubled, cache=self.ours.lm.make_cache(both, steps)), 2)
        )
        assert relative_error(our_cond, cond.numpy()) < 1e-3
        assert relative_error(our_null, null.numpy()) < 1e-3
        guided = apply_guidance(3.0, None, our_cond, our_null)
        assert relative_error(guided, (null + 3 * (cond - null)).numpy()) < 1e-3
        # The conditions and the codes both affect the logits, so the comparison is meaningful.
        assert relative_error(our_cond, null.numpy()) > 0.01
        assert relative_error(our_cond[:, :, 1:], cond[:, :, :-1].numpy()) > 0.1

    def _our_conditions(self, prompts: Sequence[str], melodies: Melodies) -> ConditionTensors:
        if not self.has_melody:
            return self.ours.text_conditioner.encode(prompts)
        wavs = None if melodies is None else [melody.wav for melody in melodies]
        inputs = self.ours.prepare_inputs(
            prompts, range(len(prompts)), melody_wavs=wavs, melody_sample_rate=self.ours.sample_rate
        )
        return self.ours._conditions(
            inputs, self.ours.params, Window(index=0, start=0, frames=1, context_frames=0), several=False
        )

    def check_codec(self, samples: int, frames: int) -> None:
        """Assert that noise encodes to the same codes, and random codes decode to the same audio."""
        codec, channels = self.theirs.audio_encoder, self.channels
        torch.manual_seed(1)
        noise = torch.randn(1, channels, samples)
        codes = torch.randint(0, self.cardinality, (1, self.num_codebooks, frames))
        with torch.no_grad():
            latents = torch.cat([codec.encoder(noise[:, c : c + 1]) for c in range(channels)])
            encoded = [codec.encode(noise[:, c : c + 1]).audio_codes[0] for c in range(channels)]
            audio = [
                codec.decode(codes[None, :, c::channels], audio_scales=[None]).audio_values
                for c in range(channels)
            ]
        ours = self.ours.compression_model
        mono = ours.mono if isinstance(ours, InterleavedStereoCodec) else ours
        our_noise = mx.array(noise.numpy())
        our_latents = (
            mono.encoder.make_stream()
            .step(our_noise.reshape(channels, samples, 1), is_last=True)
            .transpose(0, 2, 1)
        )
        assert relative_error(our_latents, latents.numpy()) < 1e-3
        # [channels, K, F]: deinterleaved, to be compared by the latents of each channel.
        our_codes = np.array(ours.encode(our_noise))[0].reshape(-1, channels, latents.shape[2]).swapaxes(0, 1)
        clear = self._clearly_encoded(latents)
        assert clear.mean() > 0.9
        wanted = torch.cat(encoded).numpy()
        np.testing.assert_array_equal(our_codes.swapaxes(1, 2)[clear], wanted.swapaxes(1, 2)[clear])
        assert relative_error(ours.decode(mx.array(codes.numpy())), torch.cat(audio, dim=1).numpy()) < 1e-3

    def _clearly_encoded(self, latents: torch.Tensor) -> np.ndarray:
        """Which frames of `latents` `[C, D, F]` are not about equally near to two entries: bool `[C, F]`."""
        residual = latents.transpose(1, 2)
        clear = torch.ones(residual.shape[:2], dtype=torch.bool)
        for layer in self.theirs.audio_encoder.quantizer.layers:
            entries = layer.codebook.embed
            distances, nearest = torch.cdist(residual, entries[None]).topk(2, largest=False)
            clear &= distances[..., 1] - distances[..., 0] > 1e-4 * distances[..., 0]
            residual = residual - entries[nearest[..., 0]]
        return clear.numpy()


def relative_error(ours: mx.array, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(np.array(ours) - theirs).max() / np.abs(theirs).max())
