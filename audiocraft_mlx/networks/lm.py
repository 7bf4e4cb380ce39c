"""The code transformer: embeddings of K codebooks → transformer → K heads.

Copet et al. 2023, "Simple and Controllable Music Generation"; equal to audiocraft's `LMModel`
(`models/lm.py`, `modules/transformer.py`) and transformers' `MusicgenForCausalLM`. Not causal: Ziv et al.
2024, "Masked Audio Generation using a Single Non-Autoregressive Transformer"; audiocraft's `MagnetLMModel`
(`models/lm_magnet.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from audiocraft_mlx.configs import (
    CARDINALITY,
    CHANNELS,
    CODEBOOKS,
    HEADS,
    HIDDEN_WIDTH,
    LAYERS,
    WIDTH,
    ConfigSection,
    Range,
    shown,
)
from audiocraft_mlx.errors import CheckpointError
from audiocraft_mlx.networks.cache import DecoderState, KVCache, Span, visible
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.positions import sinusoidal_embedding
from audiocraft_mlx.networks.weights import Weights, concat_tensors, rename
from audiocraft_mlx.ops.attention import attention, banded_attention
from audiocraft_mlx.ops.linear import linear

DIM = Range(4, WIDTH.maximum)
"""Of the LM: sinusoidal positions need four channels."""
DELAYS = Range(0, 1024)
SUBCODES_CONTEXT = Range(-1, 2**20)
SPAN_LENGTH = Range(1, 1024)


@dataclass(frozen=True)
class LMConfig:
    num_codebooks: int
    cardinality: int
    dim: int
    num_heads: int
    num_layers: int
    hidden_dim: int
    delays: tuple[int, ...]
    """Steps by which each codebook lags behind the frame that it belongs to."""
    cross_attention: bool
    sinusoidal_positions: bool = True
    rotary_positions: bool = False
    bias_attention: bool = False
    bias_ff: bool = False
    bias_heads: bool = False
    causal: bool = True
    """False: MAGNeT, which sees all positions, those with masked codes too, and predicts the codes there."""
    subcodes_context: int = -1
    """Of MAGNeT: how many frames on either side self-attention sees at the codebooks after the first; -1:
    all."""
    span_len: int = 1
    """Of MAGNeT: neighbouring frames that are masked together, as in training."""

    @classmethod
    def from_audiocraft(cls, config: ConfigSection) -> LMConfig:
        """Read `xp.cfg` of a release file; absent keys take the defaults of audiocraft's builders."""
        causal = config.choice("lm_model", ("transformer_lm", "transformer_lm_magnet")) == "transformer_lm"
        lm = config.section("transformer_lm")
        for key, supported, default in (
            ("norm_first", True, False),
            ("norm", "layer_norm", "layer_norm"),
            ("activation", "gelu", "relu"),
            ("causal", causal, False),
            ("past_context", None, None),
            ("layer_scale", None, None),
            ("xpos", False, False),
            ("positional_scale", 1.0, 1.0),
            ("max_period", 10000, 10000),
            ("qk_layer_norm", False, False),
            ("qk_layer_norm_cross", False, False),
            ("kv_repeat", 1, 1),
        ):
            lm.require(key, supported, default)
        positions = lm.string("positional_embedding", "sin")
        if positions not in ("sin", "rope", "sin_rope"):
            raise lm.error(
                "positional_embedding", f"is {shown(positions)}; only sin, rope and sin_rope are supported"
            )
        # The first releases don't say these two.
        stereo = config.section("interleave_stereo_codebooks").boolean("use", False)
        num_codebooks = lm.integer("n_q", 8 if stereo else 4, CODEBOOKS)
        dim = lm.integer("dim", within=DIM)
        hidden_dim = int(lm.number("hidden_scale", 4, Range(1 / dim, 1024)) * dim)
        if hidden_dim not in HIDDEN_WIDTH:
            raise lm.error("hidden_scale", f"gives {hidden_dim} channels, not {HIDDEN_WIDTH}")
        return cls(
            num_codebooks=num_codebooks,
            cardinality=lm.integer("card", 2048, CARDINALITY),
            dim=dim,
            num_heads=read_num_heads(lm, "num_heads", 8, dim),
            num_layers=lm.integer("num_layers", within=LAYERS),
            hidden_dim=hidden_dim,
            delays=_audiocraft_delays(config.section("codebooks_pattern"), num_codebooks, causal),
            cross_attention=bool(config.section("fuser").strings("cross", ())),
            sinusoidal_positions=positions != "rope",
            rotary_positions=positions != "sin",
            bias_attention=lm.boolean("bias_attn", True),
            bias_ff=lm.boolean("bias_ff", True),
            bias_heads=lm.boolean("bias_proj", True),
            causal=causal,
            subcodes_context=-1 if causal else lm.integer("subcodes_context", 5, SUBCODES_CONTEXT),
            # `transformer_lm.span_len` is a placeholder.
            span_len=1 if causal else config.section("masking").integer("span_len", within=SPAN_LENGTH),
        )

    @classmethod
    def from_transformers(cls, config: ConfigSection) -> LMConfig:
        """Read the `decoder` of a `config.json`; absent keys take `MusicgenDecoderConfig`'s defaults."""
        kind = config.string("model_type", "musicgen_decoder")
        if kind not in ("musicgen_decoder", "musicgen_melody_decoder"):
            raise config.error("model_type", f"is {shown(kind)}; only MusicGen's decoders are supported")
        config.require("activation_function", "gelu", "gelu")
        config.require("scale_embedding", False, False)
        channels = config.integer("audio_channels", 1, CHANNELS)
        num_codebooks = config.integer("num_codebooks", 4, CODEBOOKS)
        dim = config.integer("hidden_size", 1024, DIM)
        return cls(
            num_codebooks=num_codebooks,
            cardinality=config.integer("vocab_size", 2048, CARDINALITY),
            dim=dim,
            num_heads=read_num_heads(config, "num_attention_heads", 16, dim),
            num_layers=config.integer("num_hidden_layers", 24, LAYERS),
            hidden_dim=config.integer("ffn_dim", 4096, HIDDEN_WIDTH),
            delays=tuple(k // channels for k in range(num_codebooks)),
            cross_attention=kind == "musicgen_decoder",
        )


def read_num_heads(config: ConfigSection, key: str, default: int, dim: int) -> int:
    """The value of `key`, if it divides `dim` into heads of even size, else `CheckpointError`."""
    num_heads = config.integer(key, default, HEADS)
    if dim % num_heads or (dim // num_heads) % 2:
        raise config.error(key, f"is {num_heads}, which doesn't divide {dim} into heads of even size")
    return num_heads


def read_delays(config: ConfigSection, key: str, num_codebooks: int) -> tuple[int, ...]:
    """The value of `key`, if it is a delay for each codebook, ascending from 0, else `CheckpointError`."""
    delays = config.integers(key, range(num_codebooks), DELAYS)
    if len(delays) != num_codebooks or list(delays) != sorted(delays) or delays[0] != 0:
        raise config.error(
            key,
            f"is {shown(list(delays))}, not a delay for each of {num_codebooks} codebooks, ascending from 0",
        )
    return delays


def _audiocraft_delays(config: ConfigSection, num_codebooks: int, causal: bool) -> tuple[int, ...]:
    if not causal:
        config.require("modeling", "parallel")
    modeling = config.string("modeling")
    if modeling == "parallel":
        # -1: no step in front, so that the logits at a frame are that frame's.
        config.section("parallel").require("empty_initial", 0 if causal else -1, 0)
        return (0,) * num_codebooks
    if modeling != "delay":
        raise config.error("modeling", f"is {shown(modeling)}; only delay and parallel are supported")
    delay = config.section("delay")
    delay.require("flatten_first", 0, 0)
    delay.require("empty_initial", 0, 0)
    return read_delays(delay, "delays", num_codebooks)


@dataclass(frozen=True)
class PositionInfo:
    """The positions of a call's steps in their sequences, for the self-attention of all layers.

    Attributes:
        span: where they stand in the caches.
        offset: the first position, int `[B]` where rows differ.
        mask: bool `[B, 1, S, T]`, "causal", or None: every step attends to every position.
        rotary_periods: RoPE's, `[head_dim / 2]`; None without RoPE.
        reach: how many positions on either side a step attends to, without a cache; None: as `mask` says.
    """

    span: Span
    offset: mx.array | int
    mask: mx.array | str | None
    rotary_periods: mx.array | None
    reach: int | None = None

    def apply_rope(self, x: mx.array) -> mx.array:
        """RoPE on interleaved pairs of `[B, heads, S, head_dim]` (audiocraft's `modules/rope.py`)."""
        return mx.fast.rope(
            x,
            x.shape[-1],
            traditional=True,
            base=None,
            scale=1.0,
            offset=self.offset,
            freqs=self.rotary_periods,
        )


class SelfAttention(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.dim, 3 * config.dim, bias=config.bias_attention)
        self.out_proj = nn.Linear(config.dim, config.dim, bias=config.bias_attention)

    def project_qkv(self, x: mx.array, norm: nn.LayerNorm) -> tuple[mx.array, mx.array]:
        """Queries `[B, heads, S, head_dim]`; keys and then values `[B, 2 * heads, S, head_dim]`."""
        qkv = _split_heads(linear(self.qkv_proj, x, norm=norm), 3 * self.num_heads)
        return qkv[:, : self.num_heads], qkv[:, self.num_heads :]

    def attend(self, q: mx.array, kv: mx.array, position: PositionInfo, cache: KVCache | None) -> mx.array:
        """The attention output `[B, S, dim]`, over these steps and those in the cache."""
        heads = self.num_heads
        if position.rotary_periods is not None:
            keys = position.apply_rope(kv[:, :heads])
            q, kv = position.apply_rope(q), mx.concatenate([keys, kv[:, heads:]], axis=1)
        if position.reach is not None:
            return banded_attention(q, kv[:, :heads], kv[:, heads:], position.reach, self.training)
        k, v = (kv[:, :heads], kv[:, heads:]) if cache is None else cache.update_and_fetch(kv, position.span)
        return attention(q, k, v, position.mask, training=self.training)


class CrossAttention(nn.Module):
    """`x` plus the attention output; the norm before it is the block's."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.dim, config.dim, bias=config.bias_attention)
        self.kv_proj = nn.Linear(config.dim, 2 * config.dim, bias=config.bias_attention)
        self.out_proj = nn.Linear(config.dim, config.dim, bias=config.bias_attention)

    def project_kv(self, conditions: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values `[B, heads, C, head_dim]` of `[B, C, dim]`."""
        k, v = mx.split(linear(self.kv_proj, conditions), 2, axis=-1)
        return _split_heads(k, self.num_heads), _split_heads(v, self.num_heads)

    def __call__(
        self, x: mx.array, norm: nn.LayerNorm, kv: tuple[mx.array, mx.array], mask: mx.array | None
    ) -> mx.array:
        q = _split_heads(linear(self.q_proj, x, norm=norm), self.num_heads)
        return linear(self.out_proj, attention(q, *kv, mask, training=self.training), residual=x)


def _split_heads(x: mx.array, heads: int) -> mx.array:
    batch, length, _ = x.shape
    return x.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)


class Block(nn.Module):
    """Pre-norm: self-attention → cross-attention → feed-forward, each added to its input."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.self_attn = SelfAttention(config)
        if config.cross_attention:
            self.norm_cross = nn.LayerNorm(config.dim)
            self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        self.linear1 = nn.Linear(config.dim, config.hidden_dim, bias=config.bias_ff)
        self.linear2 = nn.Linear(config.hidden_dim, config.dim, bias=config.bias_ff)

    def __call__(
        self,
        x: mx.array,
        position: PositionInfo,
        cache: KVCache | None = None,
        cross_kv: tuple[mx.array, mx.array] | None = None,
        cross_mask: mx.array | None = None,
    ) -> mx.array:
        """`[B, S, dim]` → the same shape. See `DecoderState` for the last three."""
        q, kv = self.pre_attention(x)
        attn_out = self.self_attn.attend(q, kv, position, cache)
        return self.post_attention(x, attn_out, cross_kv, cross_mask)

    def pre_attention(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """What self-attention takes; see `SelfAttention.project_qkv`."""
        return self.self_attn.project_qkv(x, self.norm1)

    def post_attention(
        self,
        x: mx.array,
        attn_out: mx.array,
        cross_kv: tuple[mx.array, mx.array] | None,
        cross_mask: mx.array | None,
    ) -> mx.array:
        """From the output of self-attention to the block's."""
        x = linear(self.self_attn.out_proj, attn_out, residual=x)
        if cross_kv is not None:
            x = self.cross_attn(x, self.norm_cross, cross_kv, cross_mask)
        hidden = linear(self.linear1, x, norm=self.norm2, gelu=True)
        return linear(self.linear2, hidden, residual=x)


class LM(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        # The embeddings of all codebooks one below the other, so that one gather serves them; so with the
        # output layers.
        self.embed = nn.Embedding(config.num_codebooks * (config.cardinality + 1), config.dim)
        if config.rotary_positions:
            # A weight, since a release file's are rounded to half precision.
            self.rotary_frequencies = mx.zeros(config.dim // config.num_heads // 2)
        self.layers = [Block(config) for _ in range(config.num_layers)]
        self.out_norm = nn.LayerNorm(config.dim)
        self.lm_heads = nn.Linear(
            config.dim, config.num_codebooks * config.cardinality, bias=config.bias_heads
        )

    @property
    def special_token_id(self) -> int:
        """The code that stands where the delay pattern has none, or where it is masked; never predicted."""
        return self.config.cardinality

    @property
    def dtype(self) -> mx.Dtype:
        return self.out_norm.weight.dtype

    def __call__(
        self,
        codes: mx.array,
        conditions: ConditionTensors | None = None,
        cache: DecoderState | None = None,
        causal: bool = True,
    ) -> mx.array:
        """Logits `[B, K, S, card]` for the step after each of the steps `codes`, int `[B, K, S]`.

        Without a cache `codes` are whole sequences, and `conditions` theirs (None: none). With a cache they
        are the next steps of sequences whose conditions `make_cache` was given, and the cache is advanced.
        Prepended conditions go before the first steps. Unless `causal`, each step attends to all.
        """
        state = cache or self.make_state(conditions or ConditionTensors(), codes.shape[0], codes.shape[2])
        x, position = self.embed_steps(codes, state, causal)
        return self.predict(self.run_layers(x, position, state), codes.shape[2])

    def predict_masked(
        self, codes: mx.array, state: DecoderState, stage: int, frames: mx.array | None = None
    ) -> mx.array:
        """MAGNeT's logits `[B, n, card]` of codebook `stage` at `frames` (int `[n]`; None: at all).

        `codes`, int `[B, K, T]`, are whole sequences, with `special_token_id` where they are masked. `state`
        (`make_state`) is left as it is.
        """
        x, position = self.embed_steps(codes, replace(state), causal=False)
        if stage and self.config.subcodes_context >= 0:
            position = replace(position, reach=self.config.subcodes_context)
        x = self.run_layers(x, position, state)
        x = x if frames is None else x[:, frames]
        return self.predict(x, x.shape[1])[:, stage]

    def make_cache(
        self,
        conditions: ConditionTensors,
        steps: int,
        dtype: mx.Dtype | None = None,
        bits: int | None = None,
    ) -> DecoderState:
        """The state of sequences of up to `steps` steps under `conditions`, one for each row of these.

        The cross-attention's keys and values are computed here, once. `dtype` is that of the self-attention's
        (None: the weights'); with `bits` 8 these are int8.
        """
        config = self.config
        state = self.make_state(conditions, conditions.batch, steps)
        mx.eval(state.cross_kv, state.cross_mask)
        state.caches = [
            KVCache.allocate(
                state.batch,
                config.num_heads,
                len(state.positions),
                config.dim // config.num_heads,
                dtype or self.dtype,
                bits,
            )
            for _ in self.layers
        ]
        return state

    def project_cross_attention(self, cross: mx.array) -> list[tuple[mx.array, mx.array]]:
        """Each layer's keys and values `[B, heads, C, head_dim]` of conditions `[B, C, dim]`."""
        cross = cross.astype(self.dtype)
        return [layer.cross_attn.project_kv(cross) for layer in self.layers]

    def make_state(self, conditions: ConditionTensors, batch: int, steps: int) -> DecoderState:
        """The state of whole sequences of `steps` steps: without caches, and lazy."""
        capacity = conditions.prefix_length + steps
        return DecoderState(
            caches=[],
            positions=sinusoidal_embedding(mx.arange(capacity), self.config.dim).astype(self.dtype),
            cross_kv=[] if conditions.cross is None else self.project_cross_attention(conditions.cross),
            cross_mask=None if conditions.cross_mask is None else conditions.cross_mask[:, None, None, :],
            prefix=None if conditions.prefix is None else conditions.prefix.astype(self.dtype),
            starts=(0,) * batch
            if conditions.prefix_padding is None
            else tuple(int(padding) for padding in np.array(conditions.prefix_padding)),
            ends=(0,) * batch,
        )

    def embed_steps(
        self, codes: mx.array, state: DecoderState, causal: bool = True
    ) -> tuple[mx.array, PositionInfo]:
        """The layers' input `[B, S, dim]` of the next steps `codes` `[B, K, S]`, and its positions.

        A prefix that wasn't read yet goes before it. `state` is advanced.
        """
        config = self.config
        # Where each codebook's table begins: a constant, for which a step runs no kernel.
        tables = mx.array([[k * (config.cardinality + 1)] for k in range(codes.shape[1])], mx.int32)
        x = self.embed(codes + tables).astype(self.dtype).sum(axis=1)
        if state.prefix is not None:
            x = mx.concatenate([state.prefix, x], axis=1)
            state.prefix = None
        length, starts = x.shape[1], state.starts
        span = state.advance(length)
        # Of all rows, where they are at the same position: the plain case, which needs no arrays.
        begin = None if any(starts) else span.begin
        offset = begin if begin is not None else mx.array(np.subtract(span.begins, starts).astype(np.int32))
        if config.sinusoidal_positions:
            if isinstance(offset, int):
                x = x + state.positions[offset : offset + length]
            else:
                x = x + state.positions[mx.maximum(offset[:, None] + mx.arange(length), 0)]
        return x, PositionInfo(
            span=span,
            offset=offset,
            mask=_self_attention_mask(span, starts, causal),
            rotary_periods=1 / self.rotary_frequencies.astype(mx.float32)
            if config.rotary_positions
            else None,
        )

    def run_layers(self, x: mx.array, position: PositionInfo, state: DecoderState) -> mx.array:
        """`[B, S, dim]` → the same shape."""
        for index, layer in enumerate(self.layers):
            cache = state.caches[index] if state.caches else None
            cross_kv = state.cross_kv[index] if state.cross_kv else None
            x = layer(x, position, cache, cross_kv, state.cross_mask)
        return x

    def predict(self, x: mx.array, steps: int) -> mx.array:
        """Logits `[B, K, steps, card]` of the last `steps` of the layers' output `[B, S, dim]`."""
        logits = linear(self.lm_heads, x[:, -steps:], norm=self.out_norm)
        return logits.reshape(len(x), steps, self.config.num_codebooks, -1).transpose(0, 2, 1, 3)

    @staticmethod
    def sanitize(weights: Weights) -> Weights:
        """From either upstream's names to ours: q, k and v, all tables, and all heads are packed."""
        weights = rename(
            weights,
            [
                (r"^model\.decoder\.layers\.", "transformer.layers."),
                (r"^model\.decoder\.embed_tokens\.", "emb."),
                (r"^model\.decoder\.layer_norm\.", "out_norm."),
                (r"^lm_heads\.", "linears."),
                (r"\.self_attn_layer_norm\.", ".norm1."),
                (r"\.encoder_attn_layer_norm\.", ".norm_cross."),
                (r"\.final_layer_norm\.", ".norm2."),
                (r"\.encoder_attn\.", ".cross_attention."),
                (r"\.fc([12])\.", r".linear\1."),
                (r"\.in_proj_(weight|bias)$", r".in_proj.\1"),
                (r"^transformer\.", ""),
                (r"^rope\.frequencies$", "rotary_frequencies"),
            ],
        )
        # Each layer's copy of the same.
        for name in [name for name in weights if name.endswith(".self_attn.rope.frequencies")]:
            del weights[name]
        # A table of constants that transformers once saved.
        weights.pop("model.decoder.embed_positions.weights", None)
        for name in [name for name in weights if ".q_proj." in name]:
            parts = "qkv"
            concat_tensors(
                weights,
                [name.replace(".q_proj.", f".{p}_proj.") for p in parts],
                name.replace(".q_proj.", ".in_proj."),
            )
        for name in [name for name in weights if ".cross_attention.in_proj." in name]:
            packed = weights.pop(name)
            if not packed.ndim:
                raise CheckpointError(f"{name} has shape []")
            dim = packed.shape[0] // 3
            ours = name.replace(".cross_attention.in_proj.", ".cross_attn.{}_proj.")
            weights[ours.format("q")], weights[ours.format("kv")] = packed[:dim], packed[dim:]
        for ours, theirs in (("embed", "emb"), ("lm_heads", "linears")):
            for kind in ("weight", "bias"):
                count = sum(name.startswith(f"{theirs}.") and name.endswith(f".{kind}") for name in weights)
                if count:
                    concat_tensors(weights, [f"{theirs}.{k}.{kind}" for k in range(count)], f"{ours}.{kind}")
        return rename(
            weights,
            [(r"\.self_attn\.in_proj\.", ".self_attn.qkv_proj."), (r"\.cross_attention\.", ".cross_attn.")],
        )


def _self_attention_mask(span: Span, starts: Sequence[int], causal: bool) -> mx.array | str | None:
    """What each of the positions of `span` may attend to.

    No padding, which is before each row's start, and if `causal` only itself and the positions before it.
    """
    if not any(starts) and span.begin is not None:
        return "causal" if causal and span.count > 1 else None
    if span.count == 1:
        return visible(starts, span.ends)
    begin = span.begin
    if begin is None:
        raise ValueError("rows that are at different positions are advanced by one position at a time")
    padding = mx.array(list(starts), mx.int32)
    keys = mx.arange(begin + span.count)
    queries = keys[begin:, None]
    # A padding position attends to itself, so that its (unused) softmax has something to normalize.
    may_attend = (keys >= padding[:, None, None]) | (keys == queries)
    return (may_attend & (keys <= queries) if causal else may_attend)[:, None]
