"""Pack the reference goldens that the tests use: `python tests/pack_goldens.py FOLDER`.

FOLDER holds `goldens/` and `goldens_hf/`: random models in the released formats, with inputs and outputs of
audiocraft and of transformers; `goldens_lora/`: random adapters for them, with outputs of PEFT; and
`goldens_control/`: codes of the same models with a negative prompt and with a text that changes. The archives
are written next to this script; `tests/conftest.py` unpacks them. To run the tests with another such folder:
`MUSICGEN_MLX_GOLDENS=FOLDER pytest`.
"""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
from pathlib import Path
from types import EllipsisType

import numpy as np

ARCHIVE = Path(__file__).with_name("goldens.tar.xz")

FILES = [
    *(
        f"goldens/{model}/state_dict.bin"
        for model in ("mono", "stereo", "rope", "melody", "style", "audiogen", "magnet")
    ),
    *(f"goldens/{model}/compression_state_dict.bin" for model in ("mono", "stereo", "rope", "audiogen")),
    *(f"goldens/t5/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")),
    *(f"goldens/encodec_32khz/{name}" for name in ("config.json", "model.safetensors")),
    *(f"goldens/mert/{name}" for name in ("config.json", "pytorch_model.bin")),
    "goldens/htdemucs/955717e8.safetensors",
    *(f"goldens/{name}.npz" for name in ("mono", "stereo", "rope", "audiogen", "magnet")),
    *(f"goldens/{name}.npz" for name in ("t5", "codec", "codec_16khz")),
    *(f"goldens/{name}" for name in ("patterns.npz", "sampling.npz", "meta.json")),
    *(
        f"goldens_hf/{model}/{name}"
        for model in ("mono", "stereo", "melody")
        for name in ("config.json", "generation_config.json", "model.safetensors")
    ),
    *(
        f"goldens_hf/{model}-bin/{name}"
        for model in ("mono", "stereo", "melody")
        for name in (
            "config.json",
            "generation_config.json",
            "pytorch_model.bin.index.json",
            *(f"pytorch_model-0000{shard}-of-00003.bin" for shard in (1, 2, 3)),
        )
    ),
    *(f"goldens_hf/{name}" for name in ("mono.npz", "stereo.npz", "melody.npz", "meta.json")),
    *(
        f"goldens_lora/{adapter}/{name}"
        for adapter in ("everything", "rslora", "dora", "melody")
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ),
    *(f"goldens_lora/patterns_bin/{name}" for name in ("adapter_config.json", "adapter_model.bin")),
    *(f"goldens_lora/{name}" for name in ("codes.npz", "meta.json")),
]
CONTROL_ARCHIVE = ARCHIVE.with_name("goldens_control.tar.xz")
CONTROL_FILES = ["goldens_control/control.json", "goldens_control/control.npz"]
# Files of which only some arrays, or parts of arrays, are packed.
TRIMMED: dict[str, dict[str, tuple[slice | EllipsisType, ...]]] = {
    "goldens/melody.npz": {
        **dict.fromkeys(
            (
                *("chroma.wav", "chroma.raw", "chroma.argmax", "chroma.null", "chroma.short_raw"),
                *("chroma.short_argmax", "chroma.stems_shift0", "demucs.mix_shift0"),
                *("cond.description", "cond.description.mask", "cond.self_wav", "cond_textonly.self_wav"),
                *("seq", "raw_logits.both", "greedy.codes", "greedy_two_step.codes", "greedy_textonly.codes"),
                *("greedy_textonly_single.codes", "greedy_44k_stereo.src", "greedy_44k_stereo.codes"),
                "long.codes",
            ),
            (...,),
        ),
        "chroma.fbanks": (..., slice(None, None, 16)),
        "demucs.stems_shift0": (..., slice(2205)),
    },
    "goldens/style.npz": dict.fromkeys(
        (
            *("wav", "style.mert", "style.embed", "style.transformer", "style.batch_norm"),
            *("style.rvq_codes", "style.rvq_x", "style.cond", "style.mask", "style.cond_eval_q1"),
            *("style.cond_eval_q6", "style.middle_1.5s.cond", "style.middle_1.5s.mask"),
            *("style.random_1.5s.start", "style.random_1.5s.cond", "cond3.description"),
            *("cond3.description.mask", "cond3.self_wav", "cond3.self_wav.mask", "cond_mixed.self_wav"),
            *("cond_mixed.self_wav.mask", "cond_textonly.self_wav", "cond_textonly.self_wav.mask"),
            *("cond_mixed.description", "cond_mixed.description.mask", "seq", "raw_logits.three"),
            *("greedy.codes", "greedy_double.codes", "greedy_mixed.codes", "greedy_textonly.codes"),
            "greedy_styleonly.codes",
        ),
        (...,),
    ),
    "goldens/audio.npz": {
        "wav": (..., slice(16000)),
        **dict.fromkeys(
            (
                *("convert.44100_32000_1", "convert.48000_32000_2", "convert.32000_44100_2"),
                "convert.32000_24000_1",
            ),
            (...,),
        ),
        **dict.fromkeys(
            (
                *(
                    f"normalize.{strategy}.{level}.{headroom}"
                    for strategy in ("peak", "clip", "rms", "loudness")
                    for level in ("loud", "quiet")
                    for headroom in (0, 1)
                ),
                *(f"normalize.loudness.{case}" for case in ("stereo", "compressor", "below_floor")),
            ),
            (..., slice(250)),
        ),
    },
}


def pack(folder: Path) -> None:
    # One stream, with a dictionary larger than all of it: the models have the same text encoder.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 64 << 20}]
    with (
        lzma.open(ARCHIVE, "wb", filters=filters) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for name in FILES:
            add(archive, name, (folder / name).read_bytes())
        for name, keys in TRIMMED.items():
            values = np.load(folder / name)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **{key: values[key][part] for key, part in keys.items()})
            add(archive, name, buffer.getvalue())
    pack_control(folder)


def pack_control(folder: Path) -> None:
    with lzma.open(CONTROL_ARCHIVE, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for name in CONTROL_FILES:
            add(archive, name, (folder / name).read_bytes())


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # without time and owner: the same input gives the same archive
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    pack(Path(sys.argv[1]))
    sys.stdout.write(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 1e6:.1f} MB\n")
