"""Keep in the repository what is trained so far: `python keep.py` → kept/; `python keep.py --take` → work/.

Without the optimizers' states and the weights' average, which return in some hundred steps. The codec is
in half precision, as in the finished model; rows of the language model's matrices are bytes with a scale.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

KEPT, WORK = Path("kept"), Path("work")


def packed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {}
    for name, value in weights.items():
        if value.ndim < 2:
            result[name] = value
            continue
        scale = value.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        result[name] = (value / scale).round().to(torch.int8)
        result[f"{name}:scale"] = scale
    return result


def unpacked(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: value * weights[f"{name}:scale"] if value.dtype == torch.int8 else value
        for name, value in weights.items()
        if not name.endswith(":scale")
    }


def keep() -> None:
    KEPT.mkdir(exist_ok=True)
    codec = torch.load(WORK / "codec.pt")["codec"]
    save_file({name: value.half() for name, value in codec.items()}, KEPT / "codec.safetensors")
    text = torch.load(WORK / "text.pt")["text_encoder"]
    save_file({name: value.clone() for name, value in packed(text).items()}, KEPT / "text.safetensors")
    if (WORK / "lm.pt").exists():
        saved = torch.load(WORK / "lm.pt")
        weights = {
            f"{part}/{name}": value.clone()  # some share their memory
            for part in ("last", "heads")
            for name, value in packed(saved[part]).items()
        }
        counts = {name: json.dumps(saved[name]) for name in ("step", "elapsed")}
        save_file(weights, KEPT / "lm.safetensors", counts)


def take() -> None:
    WORK.mkdir(exist_ok=True)
    codec, _ = read(KEPT / "codec.safetensors")
    torch.save({"codec": {name: value.float() for name, value in codec.items()}}, WORK / "codec.pt")
    text, _ = read(KEPT / "text.safetensors")
    torch.save({"text_encoder": unpacked(text)}, WORK / "text.pt")
    if (KEPT / "lm.safetensors").exists():
        weights, counts = read(KEPT / "lm.safetensors")
        parts: dict[str, dict[str, torch.Tensor]] = {"last": {}, "heads": {}}
        for name, value in weights.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        saved = {name: unpacked(part) for name, part in parts.items()}
        torch.save(saved | {"average": saved["last"]} | counts, WORK / "lm.pt")


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    with safe_open(path, "pt") as file:
        counts = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
        return {name: file.get_tensor(name) for name in file.keys()}, counts  # noqa: SIM118


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--take", action="store_true", help="make of kept/ what the scripts continue from")
    (take if parser.parse_args().take else keep)()


if __name__ == "__main__":
    main()
