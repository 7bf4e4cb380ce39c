"""Fuzzes what reads a checkpoint's other files: xp.cfg, JSON, tokenizers, safetensors, adapters.

    python tests/fuzz_checkpoints.py [--runs 100000] [--seed 0] [--jobs 2]

Each input is a mutation of a file of a tiny model, which is then loaded, and now and then generates. It must
be read or refused by one printable line, within seconds, in bounded memory, without the network, and without
a variable of the environment in what is said or asked for. The inputs run in processes of their own with a
limit of memory: a crash, too, is found. The first input that breaks a rule is saved as a file, and the exit
status is not 0.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__:
    from .fuzzing import ROOT, Kind, Worker, main, vary_bytes, vary_json, vary_json_text
else:  # run as a script
    from fuzzing import ROOT, Kind, Worker, main, vary_bytes, vary_json, vary_json_text

GENERATE_EVERY = 25
"""How many of the models that were loaded generate music."""
DEMO_TOKENIZER = ROOT / "audiocraft_mlx" / "demo" / "tokenizer.json"

LM_CFG = """\
lm_model: transformer_lm
sample_rate: 32000
channels: 1
solver: ${oc.env:HF_TOKEN}
dataset: {segment_duration: 30}
interleave_stereo_codebooks: {use: false, per_timestep: false}
compression_model_checkpoint: //pretrained/facebook/encodec_32khz
compression_model_n_q: null
transformer_lm:
  dim: 8
  num_heads: 2
  num_layers: 1
  hidden_scale: 4
  n_q: 4
  card: 16
  activation: gelu
  norm_first: true
  bias_ff: false
  bias_attn: false
  bias_proj: false
  causal: true
  positional_embedding: sin
  two_step_cfg: false
codebooks_pattern:
  modeling: delay
  delay: {delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}
"""
TEXT_CFG = """\
fuser: {sum: [], prepend: [], cross: [description], input_interpolate: []}
conditioners:
  description: {model: t5, t5: {name: t5-base, finetune: false, normalize_text: false}}
"""
MELODY_CFG = """\
fuser: {sum: [], prepend: [self_wav, description], cross: [], input_interpolate: []}
conditioners:
  self_wav:
    model: chroma_stem
    chroma_stem: {sample_rate: '${sample_rate}', n_chroma: 12, radix2_exp: 14, argmax: true}
  description: {model: t5, t5: {name: t5-base}}
"""
STYLE_CFG = """\
fuser: {sum: [], prepend: [self_wav, description], cross: [], input_interpolate: []}
conditioners:
  self_wav:
    model: style
    style: {model_name: mert, transformer_scale: xsmall, sample_rate: '${sample_rate}', length: 3.0,
      ds_factor: 15, n_q_out: 6, eval_q: 3, bins: 64, batch_norm: true, use_middle_of_segment: false}
  description: {model: t5, t5: {name: '${nested.name}'}}
nested: {name: t5-base}
"""
CODEC_CFG = """\
compression_model: encodec
sample_rate: 16000
channels: 1
encodec: {autoencoder: seanet, quantizer: rvq, sample_rate: '${sample_rate}', channels: '${channels}',
  causal: false, renormalize: false}
seanet: {dimension: 4, n_filters: 2, n_residual_layers: 1, ratios: [8, 4], activation: ELU,
  activation_params: {alpha: 1.0}, kernel_size: 7, last_kernel_size: 7, residual_kernel_size: 3,
  dilation_base: 2, pad_mode: constant, compress: 2, lstm: 1, true_skip: true, causal: false,
  decoder: {final_activation: null}}
rvq: {n_q: 4, bins: 16, dimension: '${seanet.dimension}'}
"""
MODEL = {
    "model_type": "musicgen",
    "decoder": {
        "model_type": "musicgen_decoder",
        "audio_channels": 1,
        "num_codebooks": 4,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "ffn_dim": 16,
        "vocab_size": 16,
        "activation_function": "gelu",
        "scale_embedding": False,
    },
    "text_encoder": {
        "model_type": "t5",
        "feed_forward_proj": "relu",
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    },
    "audio_encoder": {
        "model_type": "encodec",
        "sampling_rate": 16000,
        "audio_channels": 1,
        "hidden_size": 4,
        "codebook_dim": 4,
        "codebook_size": 16,
        "num_filters": 2,
        "num_residual_layers": 1,
        "upsampling_ratios": [8, 4],
        "kernel_size": 7,
        "last_kernel_size": 7,
        "residual_kernel_size": 3,
        "dilation_growth_rate": 2,
        "pad_mode": "constant",
        "compress": 2,
        "num_lstm_layers": 1,
        "target_bandwidths": [8.0],
        "use_causal_conv": False,
        "use_conv_shortcut": False,
        "norm_type": "weight_norm",
        "normalize": False,
    },
}
GENERATION = {
    "do_sample": True,
    "top_k": 8,
    "top_p": 1.0,
    "temperature": 1.0,
    "guidance_scale": 3.0,
    "max_length": 1500,
}
MERT = {
    "model_type": "mert_model",
    "conv_dim": [4, 4],
    "conv_kernel": [10, 3],
    "conv_stride": [20, 16],
    "conv_bias": False,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "layer_norm_eps": 1e-5,
    "sample_rate": 24000,
}
DEMUCS = {
    "sources": ["drums", "bass", "other", "vocals"],
    "audio_channels": 2,
    "samplerate": 44100,
    "segment": {"_type": "fraction", "numerator": 39, "denominator": 5},
    "channels": 4,
    "bottom_channels": 8,
    "dconv_mode": 3,
    "dconv_comp": 2,
    "dconv_depth": 2,
    "t_layers": 2,
    "t_heads": 2,
    "t_hidden_scale": 2.0,
}

_YAML_WORDS = """
0 1 -1 7 65536 2147483647 1:59:59:59:59 0x7fffffff 1e9 1.0e+300 .inf -.inf .nan 0.5 true null ~
'' [] {} ??? *a | > 2001-01-01 🎹 ${transformer_lm} ${seanet.ratios} ${sample_rate} ${..dim}
${oc.env:HF_TOKEN} '${oc.env:HF_TOKEN}' x${oc.env:HF_TOKEN}x ${oc.env:HF_TOKEN,1} ${transformer_lm.dim}
${oc.decode:${oc.env:HF_TOKEN}} ${oc.create:x} !!python/name:os.system ${channels}${channels}
"""
YAML_VALUES = [
    *_YAML_WORDS.split(),
    *("9" * 30, "9" * 5000, "[0, 1]", "{a: 1}", "&a [*a]", "&a 1", "'${" + "${" * 50 + "'", "!!binary AAAA"),
    *('"\\x24{oc.env:HF_TOKEN}"', '"\\u001b[31m"', "[" * 300, "{" * 50, "!!set {a}", "!!omap [a: 1]"),
]


ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "facebook/musicgen-small",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "use_dora": False,
    "init_lora_weights": True,
    "fan_in_fan_out": False,
    "rank_pattern": {"fc1": 2, r".*\.(q|k)_proj": 2},
    "alpha_pattern": {r"^decoder\.model\.decoder\.layers\.\d+\.fc[12]": 8},
    "target_modules": ["q_proj", "fc1", "embed_tokens.0"],
    "modules_to_save": ["lm_heads.1"],
    "layer_replication": None,
    "loftq_config": {},
    "trainable_token_indices": None,
}


def vary_yaml(text: str, random_: random.Random) -> str:
    """Another value for some keys, or lines removed, repeated, exchanged or inserted."""
    lines = text.splitlines()
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        at = random_.randrange(len(lines))
        match random_.randrange(9):
            case 0 | 1 | 2 | 3 | 4:
                pairs = list(re.finditer(r"(?<=: )[^,{}\[\]]+|\[[^\]]*\]", lines[at]))
                if pairs:
                    pair = random_.choice(pairs)
                    line = lines[at]
                    lines[at] = line[: pair.start()] + random_.choice(YAML_VALUES) + line[pair.end() :]
            case 5:
                del lines[at]
                lines = lines or ["a: 1"]
            case 6:
                lines[at:at] = lines[at : at + random_.choice((1, 3))]
            case 7:
                lines.insert(
                    at,
                    random_.choice(("a: &a 1", "b: *a", "<<: *a", "---", "? [a]", "x: ${x}", "\t", "1: 2")),
                )
            case 8:
                other = random_.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
    changed = "\n".join(lines) + "\n"
    if random_.random() < 0.05:
        changed = vary_bytes(changed.encode(), random_).decode("utf-8", "replace")
    return changed


def vary_safetensors(data: bytes, random_: random.Random) -> bytes:
    """Another header for the same data, or the same with a few other bytes."""
    if random_.random() < 0.15:
        return vary_bytes(data[:3000], random_) + data[3000:]
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for name in random_.sample(sorted(header), random_.choice((1, 1, 2))):
        entry = dict(header.get(name) or {})
        match random_.randrange(8):
            case 0:
                entry["dtype"] = random_.choice(
                    ("F32", "F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", "F8_E4M3", "x")
                )
            case 1 | 2:
                shape = list(entry.get("shape", [1]))
                if shape:
                    shape[random_.randrange(len(shape))] = random_.choice(
                        (0, 1, 2, 3, 2**31, 2**32, 2**63, -1, 1.5)
                    )
                entry["shape"] = random_.choice((shape, [*shape, 1], shape[1:], shape[::-1], [1, *shape]))
            case 3:
                start, end = entry.get("data_offsets", [0, 4])
                entry["data_offsets"] = random_.choice(
                    (
                        [start, end + 4],
                        [end, start],
                        [start + 1, end + 1],
                        [0, 2**63],
                        [-4, 0],
                        [start],
                        [0, end],
                    )
                )
            case 4:
                header[random_.choice((name + "x", "x", "", "\x1b[31m", "a" * 2000, "decoder.x"))] = entry
            case 5:
                header.pop(name, None)
                continue
            case 6:
                other = random_.choice(sorted(header))
                entry, header[other] = header[other], entry
            case 7:
                entry = vary_json(entry, random_)
        header[name] = entry
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    size = random_.choice((len(text),) * 30 + (0, 2**40, 2**63))
    return struct.pack("<Q", size) + text + body


# A worker


class CheckpointWorker(Worker):
    def __init__(self, folder: Path, seed: int) -> None:
        import mlx.core as mx

        from audiocraft_mlx.checkpoints import model_files

        super().__init__(folder, seed)
        self.loaded = 0
        mx.random.seed(0)
        resolve = model_files.resolve_model

        def recorded(name: str, revision: str | None = None) -> Any:
            self.asked.append(name)
            return resolve(name, revision)

        from audiocraft_mlx.checkpoints import audiocraft, transformers

        audiocraft.resolve_model = transformers.resolve_model = recorded  # type: ignore[assignment]
        self._write_seeds()
        self.kinds = [
            Kind("xp.cfg", 24, self._vary_xp_cfg, self._load_xp_cfg),
            Kind("a training's xp.cfg", 8, self._vary_training_cfg, self._load_training_cfg),
            Kind("codec's xp.cfg", 8, self._vary_codec_cfg, self._load_codec_cfg),
            Kind(
                "config.json", 16, lambda: vary_json_text(MODEL, self.random), self._load_model("config.json")
            ),
            Kind("our config.json", 12, lambda: vary_json_text(self.own, self.random), self._load_own),
            Kind(
                "generation_config.json", 4, self._vary_generation, self._load_model("generation_config.json")
            ),
            Kind("tokenizer.json", 14, self._vary_tokenizer, self._load_tokenizer),
            Kind("safetensors", 12, self._vary_safetensors, self._load_model("model.safetensors")),
            Kind("MERT's config.json", 6, lambda: vary_json_text(MERT, self.random), self._load_mert),
            Kind("HTDemucs' arguments", 4, lambda: vary_json_text(DEMUCS, self.random), self._load_demucs),
            Kind("adapter_config.json", 8, lambda: vary_json_text(ADAPTER, self.random), self._load_adapter),
            Kind("adapter's tensors", 6, self._vary_adapter, self._load_adapter),
        ]

    def _write_seeds(self) -> None:
        """A tiny model in transformers' format, whose files are replaced one at a time, and in ours."""
        import mlx.core as mx

        from audiocraft_mlx.checkpoints import mlx_format
        from audiocraft_mlx.checkpoints.load import load

        tokenizer = json.loads(DEMO_TOKENIZER.read_text())
        tokenizer["model"]["vocab"] = tokenizer["model"]["vocab"][:60]
        tokenizer["added_tokens"] = tokenizer["added_tokens"][:3]
        self.tokenizer = tokenizer
        self.model_folder = self.folder / "model"
        self.model_folder.mkdir()
        self._write(self.model_folder / "config.json", MODEL)
        self._write(self.model_folder / "generation_config.json", GENERATION)
        self._write(self.model_folder / "tokenizer.json", tokenizer)
        weights = {name: mx.random.normal(shape) * 0.1 for name, shape in transformers_shapes().items()}
        mx.save_safetensors(str(self.model_folder / "model.safetensors"), weights)
        self.weights = (self.model_folder / "model.safetensors").read_bytes()
        self.own_folder = self.folder / "own"
        bundle = load(str(self.model_folder))
        # (A bundle that is ready to generate has the layout of this machine.)
        mlx_format.save_model(load(str(self.model_folder), lazy=True), self.own_folder, mx.float32)
        self.own = json.loads((self.own_folder / "config.json").read_text())
        self.t5 = bundle.text_conditioner.t5
        # The small files of another kind needn't be read again and again.
        self.text_encoder = load(str(self.own_folder)).text_conditioner

        self._write_adapter(weights)

    def _write_adapter(self, weights: dict[str, Any]) -> None:
        import mlx.core as mx

        self.adapter_folder = self.folder / "adapter"
        self.adapter_folder.mkdir()
        self._write(self.adapter_folder / "adapter_config.json", ADAPTER)
        inner = "decoder.model.decoder"
        tensors = {"decoder.lm_heads.1.weight": weights["decoder.lm_heads.1.weight"]}
        for module in (f"{inner}.layers.0.self_attn.q_proj", f"{inner}.layers.0.fc1"):
            rows, columns = weights[f"{module}.weight"].shape
            tensors[f"{module}.lora_A.weight"] = mx.random.normal((2, columns))
            tensors[f"{module}.lora_B.weight"] = mx.random.normal((rows, 2))
        rows, columns = weights[f"{inner}.embed_tokens.0.weight"].shape
        tensors[f"{inner}.embed_tokens.0.lora_embedding_A"] = mx.random.normal((2, rows))
        tensors[f"{inner}.embed_tokens.0.lora_embedding_B"] = mx.random.normal((columns, 2))
        tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
        mx.save_safetensors(str(self.adapter_folder / "adapter_model.safetensors"), tensors)
        self.adapter = (self.adapter_folder / "adapter_model.safetensors").read_bytes()

    @staticmethod
    def _write(path: Path, value: Any) -> None:
        path.write_text(json.dumps(value))

    def _vary_xp_cfg(self) -> bytes:
        text = LM_CFG + self.random.choice((TEXT_CFG, MELODY_CFG, STYLE_CFG))
        return vary_yaml(text, self.random).encode("utf-8", "replace")

    def _vary_training_cfg(self) -> bytes:
        from omegaconf import OmegaConf

        text = LM_CFG + self.random.choice((TEXT_CFG, MELODY_CFG, STYLE_CFG))
        return vary_json_text(OmegaConf.to_container(OmegaConf.create(text)), self.random)

    def _vary_codec_cfg(self) -> bytes:
        return vary_yaml(CODEC_CFG, self.random).encode("utf-8", "replace")

    def _vary_generation(self) -> bytes:
        return vary_json_text(GENERATION, self.random)

    def _vary_safetensors(self) -> bytes:
        return vary_safetensors(self.weights, self.random)

    def _vary_adapter(self) -> bytes:
        return vary_safetensors(self.adapter, self.random)

    def _vary_tokenizer(self) -> bytes:
        if self.random.random() < 0.5:
            return vary_json_text(self.tokenizer, self.random)
        # The vocabulary is most of it.
        part = self.random.choice(
            ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")
        )
        wild: list[Any] = [
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
            {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "a" * 50},
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 99}] * 3},
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True},
            {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False},
        ]
        changed = {**self.tokenizer, part: vary_json(self.tokenizer[part], self.random)}
        if self.random.random() < 0.3:
            changed[part] = self.random.choice(wild)
        return json.dumps(changed).encode("utf-8", "surrogatepass")

    def _load_model(self, name: str) -> Callable[[Path], Any]:
        """Load the tiny model with the input in place of its file `name`."""

        def load_with(path: Path) -> Any:
            from audiocraft_mlx.checkpoints.load import load

            place = self.model_folder / name
            kept = place.with_suffix(".kept")
            place.rename(kept)
            try:
                shutil.copy(path, place)
                bundle = load(str(self.model_folder))
                self._generate(bundle)
            finally:
                kept.replace(place)

        return load_with

    def _load_adapter(self, path: Path) -> None:
        """Load the tiny model with an adapter of which the input is a file."""
        from audiocraft_mlx.checkpoints.load import load
        from audiocraft_mlx.checkpoints.lora_spec import LoraSpec

        name = "adapter_config.json" if "config" in path.name else "adapter_model.safetensors"
        place = self.adapter_folder / name
        kept = place.with_suffix(".kept")
        place.rename(kept)
        try:
            shutil.copy(path, place)
            lora = LoraSpec(str(self.adapter_folder), self.random.choice((1.0, 0.5)))
            self._generate(load(str(self.model_folder), lora=[lora]))
        finally:
            kept.replace(place)

    def _load_own(self, path: Path) -> None:
        from audiocraft_mlx.checkpoints.load import load

        place = self.own_folder / "config.json"
        shutil.copy(path, place)
        self._generate(load(str(self.own_folder)))

    def _load_xp_cfg(self, path: Path) -> None:
        from audiocraft_mlx.configs import ConfigSection

        text = path.read_text(encoding="utf-8", errors="replace")
        self._load_cfg(ConfigSection.from_yaml(text, "a file"))

    def _load_training_cfg(self, path: Path) -> None:
        from audiocraft_mlx.configs import ConfigSection
        from audiocraft_mlx.errors import CheckpointError

        try:
            values = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        except (ValueError, RecursionError) as error:  # the pickle of a configuration is another's work
            raise CheckpointError("not a mapping") from error
        if not isinstance(values, dict):
            raise CheckpointError("not a mapping")
        self._load_cfg(ConfigSection.from_mapping(values, "a file"))

    def _load_cfg(self, config: Any) -> None:
        import mlx.core as mx

        from audiocraft_mlx.checkpoints import audiocraft
        from audiocraft_mlx.checkpoints.build import build_network
        from audiocraft_mlx.conditioning.chroma import ChromaConfig
        from audiocraft_mlx.conditioning.style import StyleParams
        from audiocraft_mlx.configs import SEGMENT_SECONDS
        from audiocraft_mlx.networks.lm import LM, LMConfig
        from audiocraft_mlx.networks.style_encoder import StyleConfig

        lm_config = LMConfig.from_audiocraft(config)
        self.asked.append(audiocraft._read_text_encoder_name(config, has_weights=False))
        audiocraft._read_stereo(config)
        config.section("dataset").number("segment_duration", 30.0, SEGMENT_SECONDS)
        config.section("transformer_lm").boolean("two_step_cfg", False)
        conditioners = config.section("conditioners")
        if "self_wav" in conditioners:
            if conditioners.section("self_wav").string("model") == "style":
                StyleConfig.from_audiocraft(config, 8)
                StyleParams.from_audiocraft(config)
            else:
                ChromaConfig.from_audiocraft(config)
        build_network(LM, lm_config, {"out_norm.weight": mx.zeros(8)}, mx.float32, "a file")

    def _load_codec_cfg(self, path: Path) -> None:
        import mlx.core as mx

        from audiocraft_mlx.checkpoints.build import build_network
        from audiocraft_mlx.configs import ConfigSection
        from audiocraft_mlx.networks.encodec import Encodec, EncodecConfig

        config = ConfigSection.from_yaml(path.read_text(encoding="utf-8", errors="replace"), "a file")
        codec = EncodecConfig.from_audiocraft(config)
        build_network(Encodec, codec, {"x": mx.zeros(8)}, mx.float32, "a file")

    def _load_tokenizer(self, path: Path) -> None:
        import mlx.core as mx

        from audiocraft_mlx.checkpoints.model_files import LocalFolder
        from audiocraft_mlx.checkpoints.tokenizer import read_tokenizer
        from audiocraft_mlx.conditioning.text import TextConditioner

        folder = self.folder / "tokenizer"
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder / "tokenizer.json")
        tokenizer = read_tokenizer(LocalFolder("a folder", folder), self.t5.config.vocab_size)
        conditioner = TextConditioner(tokenizer, self.t5, self.text_encoder.output_proj)
        mx.eval(conditioner.encode(["Happy rock, 120 bpm 🎹\n\0", None, "a" * 100]).cross)

    def _load_mert(self, path: Path) -> None:
        import mlx.core as mx

        from audiocraft_mlx.checkpoints.build import build_network
        from audiocraft_mlx.checkpoints.tensors import read_json
        from audiocraft_mlx.configs import ConfigSection
        from audiocraft_mlx.networks.mert import MERT as Network
        from audiocraft_mlx.networks.mert import MERTConfig

        config = MERTConfig.from_transformers(ConfigSection(read_json(path), "a file"))
        build_network(Network, config, {"norm.weight": mx.zeros(8)}, mx.float32, "a file")

    def _load_demucs(self, path: Path) -> None:
        import mlx.core as mx

        from audiocraft_mlx.checkpoints import demucs
        from audiocraft_mlx.errors import CheckpointError

        file = self.folder / "demucs.safetensors"
        metadata = {"args": "[]", "klass": demucs._CLASS}
        try:
            metadata["kwargs"] = path.read_text(encoding="utf-8")
            mx.save_safetensors(str(file), {"x": mx.zeros(2)}, metadata=metadata)
        except (UnicodeError, RuntimeError) as error:  # text that no header can have
            raise CheckpointError("not a header") from error
        os.environ[demucs.ENV_VAR] = str(file)
        demucs.load_htdemucs()

    def _generate(self, bundle: Any) -> None:
        from audiocraft_mlx.errors import UsageError
        from audiocraft_mlx.models.musicgen import MusicGen

        self.loaded += 1
        model = MusicGen("fuzzed", bundle)
        if self.loaded % GENERATE_EVERY:
            return
        seconds = 3 / model.frame_rate
        try:
            model.set_generation_params(duration=seconds, extend_stride=1 / model.frame_rate)
        except UsageError:
            return
        model.generate(["happy"])


def transformers_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of `MODEL` by transformers' names."""
    shapes: dict[str, tuple[int, ...]] = {}
    lm, t5, codec = "decoder.model.decoder.", "text_encoder.", "audio_encoder."
    for k in range(4):
        shapes[f"{lm}embed_tokens.{k}.weight"] = (17, 8)
        shapes[f"decoder.lm_heads.{k}.weight"] = (16, 8)
    layer = f"{lm}layers.0."
    for attention in ("self_attn", "encoder_attn"):
        for part in "qkv":
            shapes[f"{layer}{attention}.{part}_proj.weight"] = (8, 8)
        shapes[f"{layer}{attention}.out_proj.weight"] = (8, 8)
    for norm in (
        f"{layer}self_attn_layer_norm",
        f"{layer}encoder_attn_layer_norm",
        f"{layer}final_layer_norm",
    ):
        shapes |= {f"{norm}.weight": (8,), f"{norm}.bias": (8,)}
    shapes |= {f"{layer}fc1.weight": (16, 8), f"{layer}fc2.weight": (8, 16)}
    shapes |= {f"{lm}layer_norm.weight": (8,), f"{lm}layer_norm.bias": (8,)}
    block = f"{t5}encoder.block.0.layer."
    for part in "qkvo":
        shapes[f"{block}0.SelfAttention.{part}.weight"] = (8, 8)
    shapes |= {
        f"{t5}shared.weight": (64, 8),
        f"{block}0.SelfAttention.relative_attention_bias.weight": (32, 2),
        f"{block}0.layer_norm.weight": (8,),
        f"{block}1.DenseReluDense.wi.weight": (16, 8),
        f"{block}1.DenseReluDense.wo.weight": (8, 16),
        f"{block}1.layer_norm.weight": (8,),
        f"{t5}encoder.final_layer_norm.weight": (8,),
    }

    def conv(name: str, outputs: int, inputs: int, kernel: int, transposed: bool = False) -> None:
        first, second = (inputs, outputs) if transposed else (outputs, inputs)
        shapes[f"{codec}{name}.conv.weight_g"] = (first, 1, 1)
        shapes[f"{codec}{name}.conv.weight_v"] = (first, second, kernel)
        shapes[f"{codec}{name}.conv.bias"] = (outputs,)

    def lstm(name: str, dim: int) -> None:
        for part, shape in (("weight", (4 * dim, dim)), ("bias", (4 * dim,))):
            for direction in ("ih", "hh"):
                shapes[f"{codec}{name}.lstm.{part}_{direction}_l0"] = shape

    conv("encoder.layers.0", 2, 1, 7)
    conv("encoder.layers.1.block.1", 1, 2, 3)
    conv("encoder.layers.1.block.3", 2, 1, 1)
    conv("encoder.layers.3", 4, 2, 8)
    conv("encoder.layers.4.block.1", 2, 4, 3)
    conv("encoder.layers.4.block.3", 4, 2, 1)
    conv("encoder.layers.6", 8, 4, 16)
    lstm("encoder.layers.7", 8)
    conv("encoder.layers.9", 4, 8, 7)
    conv("decoder.layers.0", 8, 4, 7)
    lstm("decoder.layers.1", 8)
    conv("decoder.layers.3", 4, 8, 16, transposed=True)
    conv("decoder.layers.4.block.1", 2, 4, 3)
    conv("decoder.layers.4.block.3", 4, 2, 1)
    conv("decoder.layers.6", 2, 4, 8, transposed=True)
    conv("decoder.layers.7.block.1", 1, 2, 3)
    conv("decoder.layers.7.block.3", 2, 1, 1)
    conv("decoder.layers.9", 1, 2, 7)
    for k in range(4):
        shapes[f"{codec}quantizer.layers.{k}.codebook.embed"] = (16, 4)
    return shapes


if __name__ == "__main__":
    sys.exit(main(__file__, "Fuzz what reads a checkpoint's files, except torch files.", CheckpointWorker))
