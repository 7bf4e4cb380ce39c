"""MAGNeT equals a reference in PyTorch: transformers' layers, and the algorithm as audiocraft's code has it.

The models are random, of other seeds and shapes than the goldens': other spans, bands, codebooks and layers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import (
    EncodecConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

from audiocraft_mlx.decoding.masked import fill_masks
from audiocraft_mlx.models.magnet import MAGNeT
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from tests.audiocraft_reference import lm_weights, write_audiocraft_release
from tests.torch_files import write_torch_file

from .pair import LONG_PROMPT, SHORT_PROMPT, build, relative_error

TEMPERATURE, MAX_COEF, MIN_COEF = 3.0, 10.0, 1.0
KEPT = -1e4


@dataclass(frozen=True)
class Shape:
    seed: int
    dim: int
    heads: int
    layers: int
    codebooks: int
    cardinality: int
    span: int
    reach: int
    steps: tuple[int, ...]


SHAPES = {
    "as released": Shape(2, 48, 6, 2, 4, 128, 3, 5, (7, 4, 3, 2)),
    "long spans": Shape(5, 32, 2, 4, 4, 32, 4, 2, (10, 2, 5, 1)),
    "no spans, no bands": Shape(6, 40, 5, 1, 3, 64, 1, -1, (6, 10, 3)),
}
XP_CFG = """
lm_model: transformer_lm_magnet
transformer_lm:
  {{dim: {dim}, num_heads: {heads}, num_layers: {layers}, hidden_scale: 3, n_q: {codebooks},
    card: {cardinality}, norm_first: true, activation: gelu, causal: false,
    bias_attn: false, bias_ff: false, bias_proj: false, subcodes_context: {reach},
    compression_model_framerate: 50, segment_duration: 0, span_len: -1}}
masking: {{span_len: {span}}}
codebooks_pattern: {{modeling: parallel, parallel: {{empty_initial: -1}}}}
conditioners: {{description: {{model: t5, t5: {{name: {t5}}}}}}}
fuser: {{cross: [description], sum: [], prepend: [], input_interpolate: []}}
dataset: {{segment_duration: 2}}
generate: {{lm: {{decoding_steps: {steps}}}}}
"""


class Reference:
    """A MAGNeT of the weights of a MusicGen of transformers."""

    def __init__(self, theirs: MusicgenForConditionalGeneration, tokenizer: Path, shape: Shape) -> None:
        self.theirs, self.shape = theirs, shape
        self._tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer), pad_token="<pad>", eos_token="</s>"
        )

    @torch.no_grad()
    def condition(self, prompt: str) -> torch.Tensor:
        ids = self._tokenizer([prompt], return_tensors="pt")["input_ids"]
        hidden = self.theirs.text_encoder(input_ids=ids).last_hidden_state
        return self.theirs.enc_to_dec_proj(hidden)

    @torch.no_grad()
    def logits(self, sequence: torch.Tensor, cross: torch.Tensor, stage: int) -> torch.Tensor:
        """Of codes `[B, K, T]`, for `stage`: `[B, T, card]`."""
        decoder, frames = self.theirs.decoder.model.decoder, sequence.shape[2]
        hidden = sum(
            table(codes) for table, codes in zip(decoder.embed_tokens, sequence.transpose(0, 1), strict=True)
        )
        hidden = hidden + positions(frames, self.shape.dim)
        index = torch.arange(frames)
        mask = torch.zeros(frames, frames)
        if stage > 0 and self.shape.reach >= 0:
            mask[(index[:, None] - index).abs() > self.shape.reach] = -torch.inf
        for layer in decoder.layers:
            hidden = layer(hidden, attention_mask=mask[None, None], encoder_hidden_states=cross)
        return self.theirs.decoder.lm_heads[stage](decoder.layer_norm(hidden))

    def generate(
        self, cross: torch.Tensor, frames: int, arrangement: str, prompt: torch.Tensor
    ) -> tuple[np.ndarray, float]:
        """Greedy codes `[K, T]`, which begin with `prompt`, and how clear the least clear choice was."""
        span, card = self.shape.span, self.shape.cardinality
        both, given = torch.cat([cross, torch.zeros_like(cross)]), prompt.shape[1]
        in_chunks = arrangement == "nonoverlap" and span > 1
        frames = frames // span * span if in_chunks else frames
        sequence = torch.full((self.shape.codebooks, frames), card)
        sequence[:, :given] = prompt
        gap = math.inf
        for stage, iterations in enumerate(self.shape.steps):
            codes = torch.full((frames,), card)
            unit = span if in_chunks else 1
            scores = torch.zeros(frames // unit)
            scores[: given // unit] = KEPT
            count = frames // unit - given // unit
            for left, time in zip(reversed(range(iterations)), torch.linspace(0, 1, iterations), strict=True):
                rate = torch.cos(time * math.pi * 0.5)
                masked = max(int((rate * count).item()), 1)
                if in_chunks or span == 1:
                    chunks = torch.zeros(len(scores), dtype=torch.bool)
                    # Stable, so that of equal scores the first is taken.
                    chunks[scores.argsort(descending=True, stable=True)[:masked]] = True
                    codes[chunks.repeat_interleave(unit)] = card
                else:
                    codes[least_probable(scores, masked, span)] = card
                codes[:given] = prompt[stage]
                sequence[stage] = codes
                cond, null = self.logits(sequence.expand(2, -1, -1), both, stage)
                coef = float(rate) * MAX_COEF + (1 - float(rate)) * MIN_COEF
                guided = null + (cond - null) * coef
                probs = torch.softmax(guided / max(TEMPERATURE * left / iterations, 1e-2), dim=-1)
                best = guided.argmax(dim=-1)
                holes = codes == card
                two = guided[holes].topk(2, dim=-1).values
                gap = min(gap, float((two[:, 0] - two[:, 1]).min()))
                codes = torch.where(holes, best, codes)
                sequence[stage] = codes
                chosen = probs.gather(1, best[:, None])[:, 0]
                if in_chunks:
                    scores = (1 - chosen.reshape(-1, span).amax(dim=1)).masked_fill(~chunks, KEPT)
                else:
                    scores = (-chosen.log()).masked_fill(~holes, KEPT)
        return sequence.numpy(), gap

    @torch.no_grad()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Audio `[1, samples]` of codes `[K, T]`."""
        return (
            self.theirs.audio_encoder.decode(torch.from_numpy(codes)[None, None], audio_scales=[None])
            .audio_values[0]
            .numpy()
        )


def positions(frames: int, dim: int) -> torch.Tensor:
    rates = 10000 ** (-torch.arange(dim // 2) / (dim // 2 - 1))
    angles = torch.arange(frames)[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def least_probable(scores: torch.Tensor, count: int, span: int) -> torch.Tensor:
    """The frames of so many spans with the highest scores that about `count` frames are in them."""
    order = scores.unfold(0, span, 1).sum(dim=-1).argsort(descending=True, stable=True)

    def frames_of(spans: int) -> torch.Tensor:
        mask = torch.zeros(len(scores), dtype=torch.bool)
        mask[(order[:spans, None] + torch.arange(span)).flatten()] = True
        return mask

    count = max(count, span)
    low, high = count // span, count - span + 1
    middle = round(0.5 * (low + high))
    mask = frames_of(middle)
    while low < middle < high:
        mask = frames_of(middle)
        if mask.sum() > count:
            high = middle
        else:
            low = middle
        middle = round(0.5 * (low + high))
    return mask


@pytest.fixture(scope="module", params=list(SHAPES.values()), ids=list(SHAPES))
def both(
    request: pytest.FixtureRequest, goldens: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    shape: Shape = request.param
    tokenizer = goldens / "goldens" / "t5" / "tokenizer.json"
    theirs = build(
        T5Config(vocab_size=32128, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
        MusicgenDecoderConfig(
            vocab_size=shape.cardinality,
            pad_token_id=shape.cardinality,
            bos_token_id=shape.cardinality,
            hidden_size=shape.dim,
            num_attention_heads=shape.heads,
            num_hidden_layers=shape.layers,
            ffn_dim=3 * shape.dim,
            num_codebooks=shape.codebooks,
        ),
        EncodecConfig(
            sampling_rate=400,
            hidden_size=16,
            num_filters=4,
            upsampling_ratios=[4, 2],
            use_causal_conv=False,
            use_conv_shortcut=False,
            codebook_size=shape.cardinality,
            target_bandwidths=[50 * math.ceil(math.log2(shape.cardinality)) * shape.codebooks / 1000],
        ),
        seed=shape.seed,
    )
    folder = tmp_path_factory.mktemp("magnet")
    theirs.save_pretrained(folder / "model")
    (folder / "model" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    release, t5 = folder / "release", folder / "t5"
    write_audiocraft_release(folder / "model", release, t5, str(t5), 2)
    weights = {
        name: np.array(value) for name, value in mx.load(str(folder / "model" / "model.safetensors")).items()
    }
    write_torch_file(
        release / "state_dict.bin",
        {
            "xp.cfg": XP_CFG.format(**vars(shape) | {"steps": list(shape.steps), "t5": t5}),
            "best_state": lm_weights(weights),
        },
    )
    assert json.loads((folder / "model" / "config.json").read_text())["decoder"]["hidden_size"] == shape.dim
    ours = MAGNeT.get_pretrained(str(release))
    return SimpleNamespace(ours=ours, reference=Reference(theirs, tokenizer, shape), shape=shape)


def set_greedy(both: SimpleNamespace, arrangement: str, duration: float) -> None:
    both.ours.set_generation_params(
        use_sampling=False,
        temperature=TEMPERATURE,
        max_cfg_coef=MAX_COEF,
        min_cfg_coef=MIN_COEF,
        decoding_steps=both.shape.steps,
        span_arrangement=arrangement,
        duration=duration,
    )


@pytest.mark.parametrize("stage", [0, 1, -1])
@pytest.mark.parametrize("frames", [3, 64, 100])
def test_logits(both: SimpleNamespace, stage: int, frames: int) -> None:
    shape, lm = both.shape, both.ours.lm
    stage %= shape.codebooks
    rng = np.random.default_rng(stage)
    sequence = rng.integers(0, shape.cardinality + 1, (2, shape.codebooks, frames))
    condition = both.reference.condition(LONG_PROMPT)
    cross = torch.cat([condition, torch.zeros_like(condition)])
    wanted = both.reference.logits(torch.from_numpy(sequence), cross, stage).numpy()
    state = lm.make_state(ConditionTensors(cross=mx.array(cross.numpy())), 2, frames)
    logits = lm.predict_masked(mx.array(sequence), state, stage)
    assert relative_error(logits, wanted) < 1e-5
    # The stage, the band and the conditions count, so the comparison is meaningful.
    assert relative_error(logits[:1], wanted[1:]) > 0.01
    other = both.reference.logits(torch.from_numpy(sequence), cross, (stage + 1) % shape.codebooks).numpy()
    assert relative_error(logits, other) > 0.01


def test_conditions(both: SimpleNamespace) -> None:
    encoded = both.ours.text_conditioner.encode([SHORT_PROMPT])
    wanted = both.reference.condition(SHORT_PROMPT).numpy()
    assert relative_error(encoded.cross, wanted) < 1e-5
    assert not np.array(encoded.unconditional.cross).any()


@pytest.mark.parametrize("arrangement", ["nonoverlap", "stride1"])
@pytest.mark.parametrize("prompt", [SHORT_PROMPT, LONG_PROMPT])
def test_greedy_codes_and_audio(both: SimpleNamespace, arrangement: str, prompt: str) -> None:
    frames = 90  # with ten iterations float32 decides how many are masked in the seventh
    none = torch.zeros(both.shape.codebooks, 0, dtype=torch.long)
    condition = both.reference.condition(prompt)
    wanted, gap = both.reference.generate(condition, frames, arrangement, none)
    assert gap > 1e-5
    set_greedy(both, arrangement, (frames + 0.5) / 50)
    audio, codes = both.ours.generate([prompt], return_tokens=True)
    np.testing.assert_array_equal(codes[0], wanted)
    assert np.abs(np.array(audio[0]) - both.reference.decode(wanted)).max() < 1e-4


@pytest.mark.parametrize("arrangement", ["nonoverlap", "stride1"])
@pytest.mark.parametrize("given", [1, 12, 17])
def test_greedy_codes_behind_a_prompt(both: SimpleNamespace, arrangement: str, given: int) -> None:
    shape, frames = both.shape, 60
    rng = np.random.default_rng(given)
    prompt = rng.integers(0, shape.cardinality, (shape.codebooks, given))
    condition = both.reference.condition(SHORT_PROMPT)
    wanted, gap = both.reference.generate(condition, frames, arrangement, torch.from_numpy(prompt))
    assert gap > 1e-5
    set_greedy(both, arrangement, frames / 50)
    codes, known = np.zeros((1, shape.codebooks, frames), np.int32), np.zeros(frames, bool)
    codes[0, :, :given], known[:given] = prompt, True
    cross = mx.array(condition.numpy())
    filled = fill_masks(
        both.ours.lm,
        ConditionTensors(cross=cross, unconditional=ConditionTensors(cross=mx.zeros_like(cross))),
        mx.array(codes),
        known,
        both.ours.params.sampling,
        both.ours.params.masked,
    )
    np.testing.assert_array_equal(filled[0], wanted)
