"""`musicgen-mlx-train`: from a folder of music to an adapter that a model is loaded with."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import soundfile

from audiocraft_mlx.checkpoints.adapter_writing import read_peft_matrices, read_tensors
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.lora_spec import lora_specs
from audiocraft_mlx.cli import convert, train
from audiocraft_mlx.cli.train import parse
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.weights import flat_parameters
from audiocraft_mlx.ops import training as training_ops
from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.device import gpu_branch
from audiocraft_mlx.tuning import training as training_module
from audiocraft_mlx.tuning.checkpoint import list_checkpoints
from audiocraft_mlx.tuning.loop import Trainer
from audiocraft_mlx.tuning.lora import LoRALinear, peft_targets
from audiocraft_mlx.tuning.network import TrainedNetwork, make_batch
from audiocraft_mlx.tuning.options import ALL_TARGETS, LoRAConfig, TrainingOptions
from audiocraft_mlx.tuning.trainable import Trainable, load_for_training, make_trainable
from audiocraft_mlx.tuning.training import locked_folder

RATE = 32000
QUICK = ("--crop", "1.2", "--iters", "4", "--batch-size", "2", "--rank", "2", "--warmup", "1")


class Result(SimpleNamespace):
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on standard error, without the program's name."""
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("musicgen-mlx-train: error: ").rstrip("\n")


Train = Callable[..., Result]


@pytest.fixture
def base(transformers_folder: Callable[[str], Path]) -> str:
    return str(transformers_folder("mono"))


def write_song(
    folder: Path,
    name: str,
    caption: str | None = None,
    seconds: float = 1.3,
    rate: int = RATE,
    channels: int = 1,
) -> Path:
    """Noise, other noise for each name."""
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(list(name.encode())).uniform(-0.3, 0.3, (int(seconds * rate), channels))
    path = folder / f"{name}.wav"
    soundfile.write(path, noise.astype(np.float32), rate)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    for index, name in enumerate("abcde"):
        write_song(folder, name, f"tune {index}")
    return folder


@pytest.fixture
def run(songs: Path, base: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Train:
    """Trains on `songs`; the command's last arguments count."""

    def run(*words: str, output: str = "out", model: str = base, data: Path = songs) -> Result:
        capsys.readouterr()
        arguments = [str(data), "-m", model, "-o", str(tmp_path / output), *QUICK, *words]
        status = train.main(arguments)
        captured = capsys.readouterr()
        return Result(status=status, out=captured.out, err=captured.err)

    return run


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: np.array(value) for name, value in read_tensors(folder / "adapter_model.safetensors").items()
    }


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Ctrl-C while this step is computed; None: never."""
    train_step = Trainer.train_step

    def interrupt_after(step: int | None) -> None:
        def interrupted(self: Trainer) -> Any:
            if self.step + 1 == step:
                os.kill(os.getpid(), signal.SIGINT)
            return train_step(self)

        monkeypatch.setattr(Trainer, "train_step", interrupted)

    return interrupt_after


# What it leaves


def test_an_adapter_is_merged_as_it_was_trained(run: Train, base: str, tmp_path: Path) -> None:
    result = run("--targets", ",".join(ALL_TARGETS), "--learning-rate", "0.01")
    assert result.status == 0, result.err
    assert f'musicgen-mlx "your prompt" -m {Path(base).resolve()} --lora {tmp_path / "out"}' in result.out
    assert "step 4: validation loss " in result.out
    matrices = read_peft_matrices(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 16, "LORA")
    assert config["base_model_name_or_path"] == str(Path(base).resolve())
    assert config["target_modules"][-2:] == ["lm_heads.2", "lm_heads.3"]
    # Before they are put in the order of this machine's operations.
    plain, merged = load(base, lazy=True), load(base, lora=lora_specs(tmp_path / "out"), lazy=True)
    for place, ours in (
        ("decoder.model.decoder.layers.1.self_attn.k_proj", "layers.1.self_attn.qkv_proj.weight"),
        ("decoder.lm_heads.1", "lm_heads.weight"),
    ):
        own = matrices[place]
        change = np.array(own.b @ own.a) * 16 / 2
        assert np.abs(change).max() > 1e-4
        size = len(change)
        before, after = (
            np.array(flat_parameters(bundle.lm)[ours].astype(mx.float32))[size : 2 * size]
            for bundle in (plain, merged)
        )
        np.testing.assert_allclose(after - before, change, atol=2e-3 * np.abs(before).max())
    assert np.abs(np.array(matrices["enc_to_dec_proj"].b)).max() > 0
    assert MusicGen.get_pretrained(str(tmp_path / "out")).name == str(tmp_path / "out")


def test_the_network_that_is_trained_is_the_model_with_its_adapter(base: str, tmp_path: Path) -> None:
    from audiocraft_mlx.tuning.checkpoint import write_weights

    options = TrainingOptions(lora=LoRAConfig(rank=2, targets=ALL_TARGETS))
    trainable = make_trainable(*load_for_training(base), options)
    network = trainable.network
    for module in network.modules():
        if isinstance(module, LoRALinear):
            module.lora_b = 0.1 * mx.random.normal(module.lora_b.shape)
    write_weights(tmp_path, trainable, options)
    # Lazily: else it may be rounded to halves.
    merged = load(base, lazy=True, lora=lora_specs(tmp_path))
    codes = mx.array(np.random.default_rng(0).integers(0, 64, (1, 4, 9)))
    expected = merged.lm(codes, merged.text_conditioner.encode(["a tune"]))
    network.eval()
    ids = trainable.model.text_conditioner.token_ids(["a tune"])[0]
    text = np.array(trainable.model.text_conditioner.unprojected_states(ids))
    conditions = network.conditions(make_batch([np.zeros((4, 9), np.int32)], [text], text.shape[1]))
    np.testing.assert_allclose(np.array(network(codes, conditions)), np.array(expected), atol=1e-4)


def test_the_card_says_what_it_is(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from audiocraft_mlx.tuning import trainable

    monkeypatch.setattr(trainable, "_base_model", lambda *_: ("facebook/musicgen-small", None))
    assert run().status == 0
    card = (tmp_path / "out" / "README.md").read_text()
    header = card.split("---")[1]
    for line in (
        "base_model: facebook/musicgen-small",
        "library_name: peft",
        "license: cc-by-nc-4.0",
        '"base_model:adapter:facebook/musicgen-small"',
    ):
        assert line in header
    assert "5 files, 0.1 minutes; 5 files with a caption of their own" in card
    assert "| `--rank` | 2 |" in card
    assert "not for commercial use" in card
    assert re.search(r"The validation loss went from \d\.\d+ to \d\.\d+", card)
    assert ("curves.png" in card) == (tmp_path / "out" / "curves.png").exists()


def test_the_card_counts_the_captions_of_what_was_used(run: Train, songs: Path, tmp_path: Path) -> None:
    soundfile.write(songs / "silence.wav", np.zeros(64000), 32000)
    (songs / "silence.txt").write_text("nothing")
    (songs / "a.txt").unlink()
    assert run("--prompt", "for all").status == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "5 files, 0.1 minutes; 4 files with a caption of their own, 5 different texts." in card


def test_the_cards_command_is_one_for_a_shell(run: Train, songs: Path, tmp_path: Path) -> None:
    prompt = 'it\'s "x", $HOME `id`! \\'
    for name in "abcde":
        (songs / f"{name}.txt").write_text(prompt)
    assert run(output="my $sound").status == 0
    card = (tmp_path / "my $sound" / "README.md").read_text()
    command = card.split("```sh\n")[1].split("\n")[0]
    assert shlex.split(command) == ["musicgen-mlx", prompt, "-m", "MODEL", "--lora", "my $sound"]
    assert "'my $sound'" in command
    assert "$HOME `id`" in command
    assert not command.split(" -m ")[0].endswith('"')  # between double quotes a shell would run it


def test_curves_are_drawn(run: Train, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run("--steps-per-eval", "2").status == 0
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_so(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "find_spec", lambda name: None)
    result = run()
    assert result.status == 0
    assert "no curves.png: that needs matplotlib: pip install 'musicgen-mlx[plot]'\n" in result.out
    assert not (tmp_path / "out" / "curves.png").exists()
    assert "curves.png" not in (tmp_path / "out" / "README.md").read_text()


def test_pefts_targets_mean_the_modules_that_were_adapted() -> None:
    matrices: Any = dict.fromkeys(["decoder.lm_heads.0", "decoder.lm_heads.1", "decoder.x.fc1"])
    assert peft_targets(LoRAConfig(targets=("fc1", "lm_heads")), matrices) == (
        "fc1",
        "lm_heads.0",
        "lm_heads.1",
    )
    # PEFT takes "0" for the end of any name.
    assert peft_targets(LoRAConfig(targets=("0",)), matrices) == tuple(matrices)


# Interruptions


@pytest.mark.parametrize("options", [(), ("--grad-checkpoint", "--micro-batch", "2")], ids=str)
def test_a_training_that_is_resumed_has_the_same_weights(
    run: Train,
    tmp_path: Path,
    interrupt_after: Callable[[int | None], None],
    options: tuple[str, ...],
) -> None:
    """Bit for bit, with dropout, and with clips and more evaluations in between."""
    assert run(*options, output="whole").status == 0
    interrupt_after(2)
    more = (*options, "--sample-every", "1", "--steps-per-eval", "1", "--save-every", "1")
    result = run(*more)
    assert result.status == 130
    message = result.err.splitlines()
    assert message[1] == "finishing this step, then saving; Ctrl-C again ends at once, without"
    assert message[2].startswith(
        "musicgen-mlx-train: error: interrupted after step 2, which is saved; go on with: musicgen-mlx-train "
    )
    assert message[2].endswith(" --resume")
    interrupt_after(None)
    result = run(*more, "--resume")
    assert (result.status, result.err) == (0, "")
    assert "going on after step 2\n" in result.out
    assert_same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "out"))
    both = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "out")]
    losses = [[step[:2] for step in each["history"]["steps"]] for each in both]
    assert losses[0] == losses[1]
    # What was due when it was stopped comes later.
    assert [step for step, _ in both[1]["history"]["evaluations"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_second_interruption_ends_at_once(monkeypatch: pytest.MonkeyPatch, sent: signal.Signals) -> None:
    """Also by `kill`, or when the machine shuts down."""
    stopped, ended = [], []
    monkeypatch.setattr(os, "_exit", ended.append)
    training: Any = SimpleNamespace(stop=lambda: stopped.append(True))
    before = signal.getsignal(sent)
    with train._interrupts(training):
        os.kill(os.getpid(), sent)
        assert (stopped, ended) == ([True], [])
        os.kill(os.getpid(), sent)
    assert ended == [130]
    assert signal.getsignal(sent) is before


def test_an_interruption_in_the_first_step_leaves_nothing_to_resume(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "evaluate", lambda self: os.kill(os.getpid(), signal.SIGINT) or Evaluated)
    result = run()
    assert result.status == 130
    assert result.err.endswith("interrupted before the first step; the same command begins again\n")
    monkeypatch.undo()
    assert "has no checkpoint" in run("--resume").error
    assert run().status == 0


def test_what_a_killed_process_left_is_removed(
    run: Train, tmp_path: Path, interrupt_after: Callable[[int | None], None]
) -> None:
    interrupt_after(1)
    assert run().status == 130
    interrupt_after(None)
    stale = tmp_path / "out" / ".musicgen-0123456789abcdef.part"
    stale.mkdir()
    assert run("--resume", "--save-every", "0").status == 0
    assert not stale.exists()


def test_a_training_among_its_music_is_resumed(
    run: Train, songs: Path, tmp_path: Path, interrupt_after: Callable[[int | None], None]
) -> None:
    """The clips that it makes aren't among its data."""
    words = ("--prompt", "for all", "--sample-every", "1")
    interrupt_after(2)
    assert run(*words, output="songs/out").status == 130
    assert (songs / "out" / "samples" / "step-1.wav").exists()
    interrupt_after(None)
    result = run(*words, "--resume", output="songs/out")
    assert result.status == 0, result.err
    assert "skipped, what a training has written: 1 file: out\n" in result.out


Evaluated = training_module.Evaluation(0, (1.0,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--rank", "3"), "--rank was 2 and is 3"),
        (
            ("--learning-rate", "1", "--seed", "7"),
            "--learning-rate was 0.0001 and is 1; --seed was 0 and is 7",
        ),
        (("--targets", "q_proj"), "--targets was q_proj,k_proj,v_proj,out_proj,fc1,fc2 and is q_proj"),
        (("--prompt", "x"), "--prompt was not given and is x"),
        (("--grad-checkpoint",), "--grad-checkpoint was off and is on"),
    ],
)
def test_other_options_are_not_resumed_with(
    run: Train,
    interrupt_after: Callable[[int | None], None],
    change: tuple[str, ...],
    message: str,
) -> None:
    interrupt_after(1)
    assert run().status == 130
    result = run("--resume", *change)
    assert result.status == 2
    assert result.error.startswith(f"--resume: {message}: give the options that the training in ")


def test_other_data_or_another_model_is_not_resumed_with(
    run: Train, songs: Path, base: str, tmp_path: Path, interrupt_after: Callable[[int | None], None]
) -> None:
    interrupt_after(1)
    assert run().status == 130
    (songs / "a.txt").write_text("another caption")
    assert "(other audio or captions)" in run("--resume").error
    write_song(songs, "f", "a sixth")
    result = run("--resume")
    assert result.status == 2
    assert "4 crops to train were there, now 5" in result.error
    (songs / "f.wav").unlink()
    (songs / "a.txt").write_text("tune 0")
    interrupt_after(None)
    assert run("--resume").status == 0


def test_a_damaged_checkpoint_is_named(
    run: Train, tmp_path: Path, interrupt_after: Callable[[int | None], None]
) -> None:
    interrupt_after(3)
    assert run("--save-every", "1").status == 130
    last = tmp_path / "out" / "checkpoint-3"
    for file in ("adapter_model.safetensors", "optimizer.safetensors", "training.json"):
        whole = (last / file).read_bytes()
        (last / file).write_bytes(whole[: len(whole) // 2])
        result = run("--save-every", "1", "--resume")
        assert result.status == 1
        assert result.error.startswith(f"{last} isn't a whole checkpoint (")
        (last / file).write_bytes(whole)
    shutil.rmtree(last)
    assert "going on after step 2\n" in run("--save-every", "1", "--resume").out


def test_the_last_three_checkpoints_are_kept_and_can_be_used(run: Train, base: str, tmp_path: Path) -> None:
    assert run("--iters", "6", "--save-every", "1").status == 0
    kept = list_checkpoints(tmp_path / "out")
    assert [path.name for path in kept] == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]
    assert MusicGen.get_pretrained(base, lora=kept[0]).name == base


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiocraft_mlx.tuning import checkpoint

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", fail)
    result = run("--save-every", "2")
    assert result.status == 1
    assert "checkpoint-2 can't be written: No space left on device; free some space" in result.error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cache"]


# Other trainings


def test_a_quantized_model_is_trained_and_the_original_named(run: Train, base: str, tmp_path: Path) -> None:
    folder = tmp_path / "small-4bit"
    assert convert.main([base, "-o", str(folder), "-q", "4", "--group-size", "32"]) == 0
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"source_repo": "facebook/musicgen-small"}))
    result = run("--learning-rate", "0.01", "--iters", "20", model=str(folder), output="adapter")
    assert result.status == 0, result.err
    assert "-m facebook/musicgen-small --lora " in result.out
    assert "facebook/musicgen-small) in 4 bits" in (tmp_path / "adapter" / "README.md").read_text()
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "facebook/musicgen-small"
    history = json.loads((tmp_path / "adapter" / "training.json").read_text())["history"]
    losses = [np.mean(values) for _, values in history["evaluations"]]
    assert losses[-1] < losses[0]
    assert MusicGen.get_pretrained(base, lora=tmp_path / "adapter")


def test_a_quantized_model_that_names_no_original_says_what_to_use(
    run: Train, base: str, tmp_path: Path
) -> None:
    folder = tmp_path / "q"
    assert convert.main([base, "-o", str(folder), "-q", "8", "--group-size", "32"]) == 0
    result = run(model=str(folder))
    assert f"MODEL is the one that {folder} was quantized from" in result.out
    assert f"-m MODEL --lora {tmp_path / 'out'}" in result.out


def test_a_quantized_fine_tuned_model_does_not_name_what_that_was_trained_from(
    run: Train, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "q"
    assert convert.main([base, "-o", str(folder), "-q", "8", "--group-size", "32"]) == 0
    config = json.loads((folder / "config.json").read_text())
    more = {"source_repo": "facebook/musicgen-small", "weights_file": "mine/lm.safetensors"}
    (folder / "config.json").write_text(json.dumps(config | more))
    result = run(model=str(folder))
    assert f"MODEL is the one that {folder} was quantized from" in result.out
    assert f"-m MODEL --lora {tmp_path / 'out'}" in result.out
    with pytest.raises(UsageError, match=r"give the model that it was quantized from, and quantize it"):
        load(str(folder), lora=lora_specs(str(tmp_path / "out")))


def test_the_gradient_through_quantized_layers_is_that_through_their_values() -> None:
    layer = nn.QuantizedLinear.from_linear(nn.Linear(64, 32), 32, 4)
    values = mx.dequantize(layer.weight, layer.scales, layer.biases, 32, 4)
    x = mx.random.normal((3, 64))
    through = mx.grad(lambda x: (layer(x) ** 2).sum())(x)
    expected = mx.grad(lambda x: ((x @ values.T + layer.bias) ** 2).sum())(x)
    np.testing.assert_allclose(np.array(through), np.array(expected), rtol=1e-4, atol=1e-4)


def test_full_training_writes_a_model(songs: Path, base: str, tmp_path: Path) -> None:
    words = ("--crop", "1.2", "--iters", "4", "--learning-rate", "0.01", "--save-every", "2", "--full")
    assert train.main([str(songs), "-m", base, "-o", str(tmp_path / "out"), *words]) == 0
    before, after = load(base, lazy=True), load(str(tmp_path / "out"), lazy=True)
    for name, network in before.networks.items():
        own, trained = flat_parameters(network), flat_parameters(after.networks[name])
        equal = [
            np.allclose(np.array(value), np.array(trained[key]), atol=2e-3) for key, value in own.items()
        ]
        assert any(not same for same in equal) == (name in ("lm", "output_proj")), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: mlx" in card
    assert "-m out" in card
    assert after.weights_file == "out/lm.safetensors"
    assert len(MusicGen.get_pretrained(base, lora=tmp_path / "out" / "checkpoint-2").lm.layers) == 3
    # Its checkpoints are adapters, but are hardly meant.
    with pytest.raises(CheckpointError, match="is a model, not an adapter; give it with -m"):
        load(base, lora=lora_specs(tmp_path / "out"))


def test_full_training_is_resumed(
    songs: Path, base: str, tmp_path: Path, interrupt_after: Callable[[int | None], None]
) -> None:
    def run_full(output: str, *words: str) -> int:
        quick = ("--crop", "1.2", "--iters", "3", "--batch-size", "1", "--full", *words)
        return train.main([str(songs), "-m", base, "-o", str(tmp_path / output), *quick])

    assert run_full("whole") == 0
    interrupt_after(2)
    assert run_full("out") == 130
    interrupt_after(None)
    assert run_full("out", "--resume") == 0
    first, second = (
        {name: np.array(value) for name, value in read_tensors(tmp_path / name / "lm.safetensors").items()}
        for name in ("whole", "out")
    )
    assert_same(first, second)


@pytest.mark.parametrize("kind", ["stereo", "melody"])
def test_stereo_and_melody_models_are_trained(
    run: Train, transformers_folder: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    folder = str(transformers_folder(kind))
    assert run("--sample-every", "4", model=folder).status == 0
    assert MusicGen.get_pretrained(folder, lora=tmp_path / "out").name == folder
    info = soundfile.info(tmp_path / "out" / "samples" / "step-4.wav")
    assert (info.channels, info.samplerate) == (2 if kind == "stereo" else 1, RATE)


def test_clips_are_made_of_one_prompt_and_seed(run: Train, base: str, tmp_path: Path) -> None:
    result = run("--sample-every", "2", "--sample-prompt", "a tune", "--learning-rate", "0.05")
    assert result.status == 0
    folder = tmp_path / "out" / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["step-2.wav", "step-4.wav"]
    assert f"step 2: wrote {folder / 'step-2.wav'}\n" in result.out
    first, last = (soundfile.read(folder / f"step-{step}.wav")[0] for step in (2, 4))
    assert len(first) == int(1.2 * 50) * 640
    assert not np.array_equal(first, last)


def test_a_gpu_trains_beside_bfloat16_weights(base: str) -> None:
    def loss(options: TrainingOptions) -> float:
        trainable = make_trainable(*load_for_training(base), options)
        network = trainable.network
        network.train()
        assert all(weight.dtype == mx.float32 for weight in trainable.trained_weights.values())
        dtypes.append(network.lm.dtype)
        rng = np.random.default_rng(0)
        batch = make_batch([rng.integers(0, 64, (4, 20))], [rng.normal(size=(3, 16)).astype(np.float32)], 16)
        value, gradients = nn.value_and_grad(network, lambda batch: network.losses(batch).mean())(batch)
        mx.eval(value, gradients)
        return value.item()

    dtypes: list[mx.Dtype] = []
    options = TrainingOptions(lora=LoRAConfig(rank=2, dropout=0))
    expected = loss(options)
    with gpu_branch():
        assert loss(options) == pytest.approx(expected, rel=1e-2)
    assert dtypes == [mx.float32, mx.bfloat16]


# Operations without gradients


def step_of(trainable: Trainable, cross: bool = True) -> tuple[float, Any]:
    network = trainable.network
    network.train()
    rng = np.random.default_rng(0)
    lm = network.lm.config
    codes = [rng.integers(0, lm.cardinality, (lm.num_codebooks, 12)) for _ in range(2)]
    text = [rng.normal(size=(length, 16)).astype(np.float32) for length in (3, 1)]
    batch = make_batch(codes, text, 16)
    value, gradients = nn.value_and_grad(network, lambda batch: network.losses(batch).mean())(batch)
    mx.eval(value, gradients)
    return value.item(), gradients


def refuse_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is called of the extension fails, but what has a gradient (`ops.training`), which MLX does."""
    monkeypatch.setattr(extension, "load_extension", Refusing)
    none = SimpleNamespace(cpu_extension=lambda: None, float32_extension=lambda _: None)
    monkeypatch.setattr(training_ops, "extension", none)


class Refusing:
    def __getattr__(self, name: str) -> Any:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError(f"the extension's {name} has no gradient")

        return refuse


@pytest.mark.parametrize("kind", ["mono", "stereo", "melody"])
@pytest.mark.parametrize("mode", ["lora", "full", "quantized"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_uses_nothing_without_a_gradient(
    transformers_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    mode: str,
    checkpointing: bool,
) -> None:
    """Nor weights in the extension's order: also where the extension is there."""
    folder = str(transformers_folder(kind))
    if mode == "quantized":
        assert convert.main([folder, "-o", str(tmp_path / "q"), "-q", "8", "--group-size", "32"]) == 0
        folder = str(tmp_path / "q")
    lora = None if mode == "full" else LoRAConfig(rank=2, dropout=0.1, targets=ALL_TARGETS)
    options = TrainingOptions(lora=lora, grad_checkpoint=checkpointing)
    trainable = make_trainable(*load_for_training(folder), options)
    layers = {type(layer).__name__ for layer in trainable.network.modules()}
    assert not any(name.startswith("Tiled") for name in layers)
    assert all(weight.dtype == mx.float32 for name, weight in trainable.trained_weights.items()), (
        "trained weights are float32"
    )
    # The same as without an extension at all.
    monkeypatch.setattr(extension, "load_extension", lambda: None)
    mx.random.seed(1)
    expected, _ = step_of(trainable)
    refuse_extension(monkeypatch)
    mx.random.seed(1)
    loss, gradients = step_of(trainable)
    assert loss == expected
    assert len(trainable.trained_weights) == len(flat_parameters_of(gradients))


def flat_parameters_of(tree: Any) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(tree))


def test_evaluation_and_a_step_after_a_clip_use_nothing_without_a_gradient(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainable = make_trainable(*load_for_training(base), TrainingOptions(lora=LoRAConfig(rank=2)))
    before, _ = step_of(trainable)
    trainable.network.eval()
    trainable.model.set_generation_params(duration=0.2, seed=1)
    trainable.model.generate(["a tune"])
    refuse_extension(monkeypatch)
    crop = SimpleNamespace(codes=np.zeros((4, 12), np.int16), text=None)
    trainer = Trainer(trainable.network, TrainingOptions(lora=LoRAConfig(rank=2)), [crop], [crop], [], 16)
    assert len(trainer.evaluate().losses) == 4
    assert trainer.train_step().step == 1
    assert before > 0


# Data


def test_it_says_what_there_is_and_stops_there_if_asked(run: Train, tmp_path: Path) -> None:
    result = run("--dry-run", "--batch-size", "3", "--micro-batch", "2")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[:3] == [
        "5 files to use, 0.1 minutes: 4 to train, 1 to validate (0.0 minutes), held out by their names",
        "captions: 5 files with one of their own; 5 different texts",
        "4 crops to train, 1 to validate; 5 texts",
    ]
    assert (
        lines[3]
        == "to train: LoRA of rank 2 on q_proj, k_proj, v_proj, out_proj, fc1, fc2: 0.01 million values"
    )
    assert re.fullmatch(
        r"a step: 3 crops of up to 1\.2 s, 2 at a time, \d+\.\d\d GFLOP; 4 steps are 3\.0 times all crops",
        lines[4],
    )
    assert re.fullmatch(
        r"memory: about \d+ MB, \d+ MB of it for a step; less with --grad-checkpoint", lines[5]
    )
    assert len(lines) == 6
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cache"]
    # What was encoded is used.
    assert run().status == 0


def test_each_kind_of_bad_data_is_one_line(run: Train, songs: Path) -> None:
    soundfile.write(songs / "silent.wav", np.zeros(2 * RATE, np.float32), RATE)
    (songs / "silent.txt").write_text("nothing")
    (songs / "corrupt.wav").write_bytes(b"RIFF" + bytes(1000))
    (songs / "corrupt.txt").write_text("broken")
    write_song(songs, "short", "too short", seconds=0.5)
    write_song(songs, "three", "three seconds", seconds=3, rate=44100, channels=2)
    write_song(songs, "long", "word " * 1990)
    for name in ("g", "h", "i"):
        write_song(songs, name)
    shutil.copy(songs / "a.wav", songs / "copy.wav")
    (songs / "copy.txt").write_text("tune 0")
    result = run()
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    for expected in (
        r"skipped, no caption; give one, or --prompt for all that have none: 3 files: g\.wav, h\.wav, i\.wav",
        r"skipped, not readable: 1 file: corrupt\.wav \(.+\)",
        r"skipped, shorter than 1 s: 1 file: short\.wav \(0\.50 s\)",
        r"skipped, the same audio as another file: 1 file: \w+\.wav \(\w+\.wav is used\)",
        r"skipped, silent: 1 file: silent\.wav",
        r"cut after 512 tokens, the most that the text encoder was trained with: 1 caption",
    ):
        assert sum(bool(re.fullmatch(expected, line)) for line in lines) == 1, expected


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rank", "0"), "argument --rank: must be an integer from 1 to 4096, not '0'"),
        (("--alpha", "0"), "argument --alpha: must be a number above 0"),
        (("--dropout", "1"), "argument --dropout: must be a number from 0 to below 1"),
        (("--iters", "0"), "argument --iters: must be an integer, 1 or more"),
        (("--targets", ","), "--targets: name some"),
        (("--targets", "k_projj"), "--targets: the model has no 'k_projj'; it has q_proj, k_proj"),
        (("--crop", "0.5"), "--crop must be from 1 to "),
        (("--crop", "31"), "--crop must be from 1 to "),
        (("--full",), "--full trains all weights, without LoRA; leave --rank out"),
        (("--sample-prompt", "x"), "--sample-prompt needs --sample-every N"),
        (("--resume",), "--resume: "),
        (("--resume", "--dry-run"), "--dry-run trains nothing; leave --resume out"),
        (("--prompt", "x" * 10_001), "the prompt has 10001 characters"),
        (("-m", "style"), "style is a style model, which can't be trained here"),
        (("-m", "musicgen-style"), "musicgen-style is a style model"),
        (("--validation", "1"), "argument --validation: must be a number from 0 to below 1"),
        (("-o", ""), "argument -o/--output: must be the name of a folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run: Train, words: tuple[str, ...], message: str) -> None:
    result = run(*words)
    assert result.status == 2
    assert result.error.startswith(message)


def test_the_home_of_nobody_is_one_line(run: Train) -> None:
    result = run(data=Path("~no-such-user/songs"))
    assert (result.status, "~no-such-user/songs does not exist; give" in result.error) == (2, True)
    train_words = parse(["songs", "-o", "~no-such-user/x"])
    assert train_words.output == Path("~no-such-user/x")


def test_a_style_model_in_a_folder_is_refused(run: Train, goldens: Path, hub_cache: Path) -> None:
    result = run(model=str(goldens / "goldens" / "style"))
    assert result.status == 2
    assert "is a style model, which can't be trained here" in result.error


def test_a_magnet_is_refused(run: Train, goldens: Path, hub_cache: Path) -> None:
    result = run(model=str(goldens / "goldens" / "magnet"))
    assert result.status == 2
    assert "is a MAGNeT, which can't be trained here" in result.error


def test_an_adapter_is_no_model_to_train(run: Train, tmp_path: Path) -> None:
    assert run().status == 0
    result = run(model=str(tmp_path / "out"), output="second")
    assert result.status == 2
    assert "is an adapter; give the model that it was trained from" in result.error


def test_all_weights_of_a_quantized_model_are_not_trained(
    songs: Path, base: str, tmp_path: Path, capsys: Any
) -> None:
    assert convert.main([base, "-o", str(tmp_path / "q"), "-q", "4", "--group-size", "32"]) == 0
    assert train.main([str(songs), "-m", str(tmp_path / "q"), "-o", str(tmp_path / "out"), "--full"]) == 2
    assert (
        "is quantized to 4 bits, and such weights can't be trained; leave --full out"
        in capsys.readouterr().err
    )


def test_no_captions_and_no_prompt(run: Train, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    for name in ("a", "b"):
        write_song(folder, name)
    result = run(data=folder)
    assert result.status == 2
    assert (
        "skipped, no caption; give one, or --prompt for all that have none: 2 files: a.wav, b.wav\n"
        in result.out
    )
    assert result.error == f"{folder} has no file to train on; the lines above say why"
    assert run("--prompt", "a tune", data=folder).status == 0


def test_the_output_folder_must_be_free(run: Train, tmp_path: Path, interrupt_after: Any) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.pdf").touch()
    result = run(output="taken")
    assert (result.status, result.error) == (
        2,
        f"{tmp_path / 'taken'} has other things in it (thesis.pdf); choose another --output",
    )
    assert "there is no folder" in run(output="not/there").error
    (tmp_path / "file").touch()
    assert "is a file; choose another name" in run(output="file").error
    interrupt_after(1)
    assert run().status == 130
    assert "has a training in it; go on with --resume, or choose another --output" in run().error
    interrupt_after(None)
    assert run("--resume").status == 0
    assert "has a training in it; choose another --output" in run().error
    assert "is complete; use it, or choose another --output" in run("--resume").error


def test_a_folder_is_that_of_one_training(run: Train, tmp_path: Path) -> None:
    with locked_folder(tmp_path / "used"):
        assert run(output="used").error == (
            f"another training uses {tmp_path / 'used'}; choose another --output, or wait for it"
        )
    assert not (tmp_path / "used").exists()  # nothing came into it
    assert run(output="used").status == 0


def test_out_of_memory_says_what_to_change(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Trainer) -> None:
        raise RuntimeError("[malloc] Unable to allocate 12345 bytes.")

    monkeypatch.setattr(Trainer, "train_step", fail)
    result = run("--micro-batch", "2")
    assert result.status == 1
    assert re.fullmatch(
        r"out of memory: a step takes about \d+ MB, all of the training \d+ MB; try --micro-batch 1"
        r" instead of 2, or --grad-checkpoint",
        result.error,
    )


def test_a_machine_that_is_too_small_is_said_before(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "memory_size", lambda: 200_000_000)
    assert "this machine has 200 MB: that may not be enough; try --grad-checkpoint\n" in run("--dry-run").out


def test_a_training_that_diverges_ends_with_what_to_do(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainedNetwork, "losses", lambda self, batch: mx.full((4,), float("nan")))
    result = run("--validation", "0")
    assert result.status == 1
    assert result.error == "the loss is nan at step 1: it diverged; try a lower --learning-rate"
