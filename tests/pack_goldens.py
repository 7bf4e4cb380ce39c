"""Pack what the tests need of the reference goldens: `python tests/pack_goldens.py FOLDER`.

FOLDER holds `goldens/` and `goldens_hf/`: random models in the released formats, with inputs and outputs of
audiocraft and of transformers. The archive lies beside this script; `tests/conftest.py` unpacks it. A run of
the tests against another such folder: `MUSICGEN_MLX_GOLDENS=FOLDER pytest`.
"""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
from pathlib import Path

import numpy as np

ARCHIVE = Path(__file__).with_name("goldens.tar.xz")

FILES = [
    *(f"goldens/{model}/state_dict.bin" for model in ("mono", "stereo", "rope", "melody")),
    *(f"goldens/{model}/compression_state_dict.bin" for model in ("mono", "stereo", "rope", "audiogen")),
    *(f"goldens/t5/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")),
    *(f"goldens/encodec_32khz/{name}" for name in ("config.json", "model.safetensors")),
    *(f"goldens/{name}.npz" for name in ("mono", "stereo", "rope", "t5", "codec", "codec_16khz")),
    *(f"goldens/{name}" for name in ("patterns.npz", "sampling.npz", "meta.json")),
    *(
        f"goldens_hf/{model}/{name}"
        for model in ("mono", "stereo")
        for name in ("config.json", "generation_config.json", "model.safetensors")
    ),
    *(
        f"goldens_hf/{model}-bin/{name}"
        for model in ("mono", "stereo")
        for name in (
            "config.json",
            "generation_config.json",
            "pytorch_model.bin.index.json",
            *(f"pytorch_model-0000{shard}-of-00003.bin" for shard in (1, 2, 3)),
        )
    ),
    *(f"goldens_hf/{name}" for name in ("mono.npz", "stereo.npz", "meta.json")),
]
# Of the melody model only what concerns the code transformer.
TRIMMED = {"goldens/melody.npz": ("cond.description", "cond.self_wav", "seq", "raw_logits.both")}


def pack(folder: Path) -> None:
    # One stream with a window over all of it: the models share their text encoder.
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
            np.savez_compressed(buffer, **{key: values[key] for key in keys})
            add(archive, name, buffer.getvalue())


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # no times and owners: the same input gives the same archive
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    pack(Path(sys.argv[1]))
    sys.stdout.write(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 1e6:.1f} MB\n")
