"""The code transformer: embeddings of K codebooks → causal transformer → K heads.

Copet et al. 2023, "Simple and Controllable Music Generation"; equal to audiocraft's `LMModel`
(`models/lm.py`, `modules/transformer.py`) and transformers' `MusicgenForCausalLM`.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.networks.cache import DecoderState, KVCache, LayerStep
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.positions import sinusoidal_embedding
from audiocraft_mlx.networks.weights import Weights, concat_tensors, rename
from audiocraft_mlx.ops.attention import attention
from audiocraft_mlx.ops.cpu.extension import kv_cache_dtype
from audiocraft_mlx.ops.cpu.fused_block import FusedBlockStep, make_fused_step
from audiocraft_mlx.ops.linear import linear


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

    @classmethod
    def from_audiocraft(cls, config: ConfigSection) -> LMConfig:
        """Read `xp.cfg` of a release file; absent keys take the defaults of audiocraft's builders."""
        config.require("lm_model", "transformer_lm")
        lm = config.section("transformer_lm")
        for key, supported, default in (
            ("norm_first", True, False),
            ("norm", "layer_norm", "layer_norm"),
            ("activation", "gelu", "relu"),
            ("causal", True, False),
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
                "positional_embedding", f"is {positions!r}; only sin, rope and sin_rope are supported"
            )
        # The first releases don't say these two.
        stereo = config.section("interleave_stereo_codebooks").boolean("use", False)
        num_codebooks = lm.integer("n_q", 8 if stereo else 4)
        dim = lm.integer("dim")
        return cls(
            num_codebooks=num_codebooks,
            cardinality=lm.integer("card", 2048),
            dim=dim,
            num_heads=_heads(lm, "num_heads", 8, dim),
            num_layers=lm.integer("num_layers"),
            hidden_dim=int(lm.number("hidden_scale", 4) * dim),
            delays=_audiocraft_delays(config.section("codebooks_pattern"), num_codebooks),
            cross_attention=bool(config.section("fuser").strings("cross", ())),
            sinusoidal_positions=positions != "rope",
            rotary_positions=positions != "sin",
            bias_attention=lm.boolean("bias_attn", True),
            bias_ff=lm.boolean("bias_ff", True),
            bias_heads=lm.boolean("bias_proj", True),
        )

    @classmethod
    def from_transformers(cls, config: ConfigSection) -> LMConfig:
        """Read the `decoder` of a `config.json`; absent keys take `MusicgenDecoderConfig`'s defaults."""
        kind = config.string("model_type", "musicgen_decoder")
        if kind not in ("musicgen_decoder", "musicgen_melody_decoder"):
            raise config.error("model_type", f"is {kind!r}; only MusicGen's decoders are supported")
        config.require("activation_function", "gelu", "gelu")
        config.require("scale_embedding", False, False)
        channels = config.integer("audio_channels", 1)
        if channels > 2:
            raise config.error("audio_channels", f"is {channels}; only 1 and 2 are supported")
        num_codebooks = config.integer("num_codebooks", 4)
        dim = config.integer("hidden_size", 1024)
        return cls(
            num_codebooks=num_codebooks,
            cardinality=config.integer("vocab_size", 2048),
            dim=dim,
            num_heads=_heads(config, "num_attention_heads", 16, dim),
            num_layers=config.integer("num_hidden_layers", 24),
            hidden_dim=config.integer("ffn_dim", 4096),
            delays=tuple(k // channels for k in range(num_codebooks)),
            cross_attention=kind == "musicgen_decoder",
        )


def _heads(config: ConfigSection, key: str, default: int, dim: int) -> int:
    heads = config.integer(key, default)
    if dim % heads or (dim // heads) % 2:
        raise config.error(key, f"is {heads}, which doesn't divide {dim} into heads of even size")
    return heads


def _audiocraft_delays(config: ConfigSection, num_codebooks: int) -> tuple[int, ...]:
    modeling = config.string("modeling")
    if modeling == "parallel":
        config.section("parallel").require("empty_initial", 0, 0)
        return (0,) * num_codebooks
    if modeling != "delay":
        raise config.error("modeling", f"is {modeling!r}; only delay and parallel are supported")
    delay = config.section("delay")
    delay.require("flatten_first", 0, 0)
    delay.require("empty_initial", 0, 0)
    delays = delay.integers("delays", range(num_codebooks))
    if len(delays) != num_codebooks or list(delays) != sorted(delays):
        raise delay.error(
            "delays", f"is {list(delays)}, not one rising delay for each of {num_codebooks} codebooks"
        )
    return delays


@dataclass(frozen=True)
class Place:
    """Where a call's positions stand in their sequences, for the self-attention of all layers."""

    offset: mx.array | int
    """Position of the first, int `[B]` where rows differ."""
    mask: mx.array | str | None
    rotary_periods: mx.array | None

    def rotate(self, x: mx.array) -> mx.array:
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

    def ask(self, x: mx.array, norm: nn.LayerNorm) -> tuple[mx.array, mx.array]:
        """Queries `[B, heads, S, head_dim]`; keys and then values `[B, 2 * heads, S, head_dim]`."""
        qkv = _split_heads(linear(self.qkv_proj, x, norm=norm), 3 * self.num_heads)
        return qkv[:, : self.num_heads], qkv[:, self.num_heads :]

    def look_back(self, q: mx.array, kv: mx.array, cache: KVCache, place: Place) -> mx.array:
        """What the queries find in all so far, `[B, S, dim]`."""
        if place.rotary_periods is not None:
            heads = self.num_heads
            q, kv = place.rotate(q), mx.concatenate([place.rotate(kv[:, :heads]), kv[:, heads:]], axis=1)
        keys, values = cache.append(kv)
        return attention(q, keys, values, place.mask)


class CrossAttention(nn.Module):
    """`x` plus what its positions find in the context; the norm in front is the block's."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.dim, config.dim, bias=config.bias_attention)
        self.kv_proj = nn.Linear(config.dim, 2 * config.dim, bias=config.bias_attention)
        self.out_proj = nn.Linear(config.dim, config.dim, bias=config.bias_attention)

    def keys_values(self, context: mx.array) -> tuple[mx.array, mx.array]:
        k, v = (
            _split_heads(part, self.num_heads) for part in mx.split(linear(self.kv_proj, context), 2, axis=-1)
        )
        return k, v

    def __call__(
        self, x: mx.array, norm: nn.LayerNorm, context: tuple[mx.array, mx.array], mask: mx.array | None
    ) -> mx.array:
        q = _split_heads(linear(self.q_proj, x, norm=norm), self.num_heads)
        return linear(self.out_proj, attention(q, *context, mask), residual=x)


def _split_heads(x: mx.array, heads: int) -> mx.array:
    batch, length, _ = x.shape
    return x.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)


class Block(nn.Module):
    """Pre-norm: self-attention → cross-attention → feed-forward, each added to its input.

    In two halves, before and after the look at what was so far: those are the same at every step.
    """

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

    def before(self, x: mx.array) -> tuple[mx.array, mx.array]:
        return self.self_attn.ask(x, self.norm1)

    def after(
        self,
        x: mx.array,
        found: mx.array,
        context: tuple[mx.array, mx.array] | None,
        context_mask: mx.array | None,
    ) -> mx.array:
        x = linear(self.self_attn.out_proj, found, residual=x)
        if context is not None:
            x = self.cross_attn(x, self.norm_cross, context, context_mask)
        hidden = linear(self.linear1, x, norm=self.norm2, gelu=True)
        return linear(self.linear2, hidden, residual=x)


class LM(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.cache_bits: int | None = None
        """8: keys and values are kept in 8 bits. None: in the precision that suits the weights."""
        # The tables of all codebooks one below the other, so that one gather serves them; so with the heads.
        self.embed = nn.Embedding(config.num_codebooks * (config.cardinality + 1), config.dim)
        if config.rotary_positions:
            # A weight, since a release file's are rounded to half precision.
            self.rotary_frequencies = mx.zeros(config.dim // config.num_heads // 2)
        self.layers = [Block(config) for _ in range(config.num_layers)]
        self.out_norm = nn.LayerNorm(config.dim)
        self.heads = nn.Linear(config.dim, config.num_codebooks * config.cardinality, bias=config.bias_heads)

    @property
    def special_token_id(self) -> int:
        """The code that stands where the delay pattern has none; it is never predicted."""
        return self.config.cardinality

    @property
    def dtype(self) -> mx.Dtype:
        return self.out_norm.weight.dtype

    def start(self, conditions: ConditionTensors, steps: int) -> DecoderState:
        """The state of a sequence of `steps` steps under `conditions` (as many rows as these have).

        The cross-attention's keys and values are computed here, once.
        """
        config = self.config
        prefix = None if conditions.prefix is None else conditions.prefix.astype(self.dtype)
        context = None if conditions.cross is None else conditions.cross.astype(self.dtype)
        capacity = conditions.prefix_length + steps
        contexts = [
            None if context is None else layer.cross_attn.keys_values(context) for layer in self.layers
        ]
        mask = None if conditions.cross_mask is None else conditions.cross_mask[:, None, None, :]
        mx.eval(contexts, mask)  # constants of the compiled parts
        between = [self._between(index, contexts[index], mask) for index in range(len(self.layers))]
        return DecoderState(
            caches=[
                KVCache(
                    conditions.batch,
                    config.num_heads,
                    capacity,
                    config.dim // config.num_heads,
                    kv_cache_dtype(isinstance(self.heads, nn.QuantizedLinear), self.dtype),
                    bits=self.cache_bits,
                )
                for _ in self.layers
            ],
            positions=sinusoidal_embedding(mx.arange(capacity), config.dim).astype(self.dtype),
            prefix=prefix,
            padding=conditions.prefix_padding,
            contexts=contexts,
            between=between,
            between_single=[mx.compile(function) for function in between],
            rests=self._rests(conditions.batch, contexts, mask),
        )

    def _between(
        self, index: int, context: tuple[mx.array, mx.array] | None, mask: mx.array | None
    ) -> LayerStep:
        """From what layer `index` found in all so far to its result, and what the next layer asks for."""
        layer, following = self.layers[index], self.layers[index + 1 : index + 2]

        def between(x: mx.array, found: mx.array) -> tuple[mx.array, ...]:
            x = layer.after(x, found, context, mask)
            return (x, *following[0].before(x)) if following else (x,)

        return between

    def _rests(
        self, rows: int, contexts: list[tuple[mx.array, mx.array] | None], mask: mx.array | None
    ) -> list[FusedBlockStep] | None:
        if self.config.rotary_positions:
            return None
        rests = [
            make_fused_step(layer, rows, context, mask)
            for layer, context in zip(self.layers, contexts, strict=True)
        ]
        found = [rest for rest in rests if rest is not None]
        return found if len(found) == len(rests) else None

    def __call__(self, codes: mx.array, state: DecoderState) -> mx.array:
        """Logits `[B, K, S, card]` for the step after each of the next steps `codes`, int `[B, K, S]`.

        The prefix, if the conditions have one, goes in front of the first call's steps. `state` is
        advanced by what was read.
        """
        config = self.config
        batch, num_codebooks, steps = codes.shape
        tables = mx.arange(num_codebooks)[:, None] * (config.cardinality + 1)
        x = self.embed(codes + tables).sum(axis=1)
        if state.prefix is not None:
            x = mx.concatenate([state.prefix, x], axis=1)
            state.prefix = None
        length = x.shape[1]
        offset, padding = state.offset, state.padding
        if config.sinusoidal_positions:
            if padding is None:
                x = x + state.positions[offset : offset + length]
            else:
                positions = mx.arange(offset, offset + length) - padding[:, None]
                x = x + state.positions[mx.maximum(positions, 0)]
        place = Place(
            offset=offset if padding is None else offset - padding,
            mask=_self_attention_mask(offset, length, padding),
            rotary_periods=1 / self.rotary_frequencies.astype(mx.float32)
            if config.rotary_positions
            else None,
        )
        if length == 1 and state.rests is not None:
            visible = place.mask.reshape(batch, -1) if isinstance(place.mask, mx.array) else None
            for layer, cache, rest in zip(self.layers, state.caches, state.rests, strict=True):
                asked = linear(layer.self_attn.qkv_proj, x, norm=layer.norm1)
                x = cache.step(x, asked, rest, visible)
        else:
            between = state.between_single if length == 1 else state.between
            q, kv = self.layers[0].before(x)
            for layer, cache, function in zip(self.layers, state.caches, between, strict=True):
                x, *next_asked = function(x, layer.self_attn.look_back(q, kv, cache, place))
                if next_asked:
                    q, kv = next_asked
        state.offset += length
        logits = linear(self.heads, x[:, -steps:], norm=self.out_norm)
        return logits.reshape(batch, steps, num_codebooks, -1).transpose(0, 2, 1, 3)

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
            dim = packed.shape[0] // 3
            ours = name.replace(".cross_attention.in_proj.", ".cross_attn.{}_proj.")
            weights[ours.format("q")], weights[ours.format("kv")] = packed[:dim], packed[dim:]
        for ours, theirs in (("embed", "emb"), ("heads", "linears")):
            for kind in ("weight", "bias"):
                count = sum(name.startswith(f"{theirs}.") and name.endswith(f".{kind}") for name in weights)
                if count:
                    concat_tensors(weights, [f"{theirs}.{k}.{kind}" for k in range(count)], f"{ours}.{kind}")
        return rename(
            weights,
            [(r"\.self_attn\.in_proj\.", ".self_attn.qkv_proj."), (r"\.cross_attention\.", ".cross_attn.")],
        )


def _self_attention_mask(offset: int, length: int, padding: mx.array | None) -> mx.array | str | None:
    """What each of `length` positions after the first `offset` may look at: the past, and no padding."""
    if padding is None:
        return "causal" if length > 1 else None
    keys = mx.arange(offset + length)
    queries = keys[offset:, None]
    # A padding position looks at itself, so that its (unused) softmax has something to normalise.
    visible = (keys <= queries) & ((keys >= padding[:, None, None]) | (keys == queries))
    return visible[:, None]
