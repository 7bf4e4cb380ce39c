"""Kills each program at random moments (SIGKILL), goes on, and looks at what there is: a part of `make soak`.

    python -m tests.kills [--kills 40] [--seed 0] [list server training cluster]

Nothing that was there may be lost, nothing be half, and what goes on must come to the result that it would
have had. All with the demo model. The exit status is 1 if something of that doesn't hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.clips.codes import read_codes

from .cluster_processes import Cluster, environment, kill
from .server_process import ServerProcess, serving
from .test_server_faults import check

CLIPS = 12
STEPS = 12
IS_COMPLETE = "is complete; use it"
"""What a training says that was killed behind its end."""
OPTIONS = ["-m", "demo", "--no-open"]


def main() -> int:
    parts: dict[str, Callable[[int, random.Random, Path], str]] = {
        "list": kill_lists,
        "server": kill_servers,
        "training": kill_trainings,
        "cluster": kill_workers,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (default: all)")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    holds = True
    for part in arguments.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            try:
                report = parts[part](arguments.kills, random.Random(arguments.seed), Path(folder))
            except AssertionError as error:
                holds, report = False, f"doesn't hold: {error}"
            print_stdout(f"{part}: {report}; {time.perf_counter() - start:.0f} s")
    return 0 if holds else 1


def require(holds: bool, what: object) -> None:
    if not holds:
        raise AssertionError(what)


# Processes that are killed


def start(program: str, words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """A command of the package, in `folder`, where `log` gets what it says."""
    code = f"from audiocraft_mlx.cli.{program} import main; raise SystemExit(main())"
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
        )


def run(program: str, words: Sequence[str], folder: Path) -> float:
    """Seconds that a command takes that nobody kills."""
    begin = time.perf_counter()
    status = start(program, words, folder).wait()
    require(status == 0, (folder / "log").read_text())
    return time.perf_counter() - begin


def killed_within(process: subprocess.Popen[bytes], seconds: float, folder: Path) -> bool:
    """Kill a command after so long; False: it ended before, and well."""
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        return process.returncode == -signal.SIGKILL
    require(status == 0 or IS_COMPLETE in (folder / "log").read_text(), (folder / "log").read_text())
    return False


def parts_left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


# A list of prompts


def write_list(folder: Path) -> None:
    lines = [f"piano {i},{0.3 + 0.2 * (i % 7):.1f},{('flac', 'wav')[i % 2]}" for i in range(CLIPS)]
    (folder / "list.csv").write_text("\n".join(["prompt,duration,format", *lines]) + "\n")


LIST = [*OPTIONS, "--prompts", "list.csv", "-o", "clip.wav", "--seed", "5", "--manifest", "made.jsonl"]


def kill_lists(kills: int, draw: random.Random, folder: Path) -> str:
    whole = folder / "whole"
    whole.mkdir()
    write_list(whole)
    seconds = run("generate", LIST, whole)
    done = runs = equal = 0
    while done < kills:
        place = folder / f"{runs}"
        place.mkdir()
        write_list(place)
        while True:
            process = start("generate", [*LIST, "--skip-existing"], place)
            killed = done < kills and killed_within(process, draw.uniform(0.2, 0.8) * seconds, place)
            check_clips(place, whole)
            if not killed:
                require(process.wait() == 0, (place / "log").read_text())
                break
            done += 1
        runs += 1
        equal += check_clips(place, whole, complete=True)
        shutil.rmtree(place)
    return f"{done} kills, {runs} lists of {CLIPS} clips, {equal} of {runs * CLIPS} files equal byte for byte"


def clips_in(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.glob("clip-*"))}


def check_clips(folder: Path, whole: Path, complete: bool = False) -> int:
    """How many files are equal to the last byte. All have the codes, which is what can be promised."""
    expected, there = clips_in(whole), clips_in(folder)
    require(there.keys() <= expected.keys(), f"other files: {[*there]}")
    equal = 0
    for name, path in there.items():
        equal += path.read_bytes() == expected[name].read_bytes()
        codes, others = read_codes(path), read_codes(expected[name])
        require(codes is not None and others is not None, f"{name} is not whole")
        assert codes is not None
        assert others is not None
        require(np.array_equal(codes.codes, others.codes), f"{name} has other codes")
        samples, others_samples = (
            soundfile.read(each, dtype="int16")[0].astype(int) for each in (path, expected[name])
        )
        require(samples.shape == others_samples.shape, f"{name} has another length")
        require(np.abs(samples - others_samples).max() <= 1, f"{name} sounds otherwise")
    if complete:
        require(there.keys() == expected.keys(), f"missing: {expected.keys() - there.keys()}")
        require(not parts_left(folder), f"left: {parts_left(folder)}")
        check_manifest(folder)
    return equal


def check_manifest(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "made.jsonl").read_text().splitlines()]
    require(sorted(line["file"] for line in lines) == [*clips_in(folder)], "the manifest has other files")
    for line in lines:
        digest = hashlib.sha256((folder / line["file"]).read_bytes()).hexdigest()
        require(line["sha256"] == digest, f"the manifest has another hash of {line['file']}")


# A server


def kill_servers(kills: int, draw: random.Random, folder: Path) -> str:
    """Clients ask for clips while it is killed; the next one must have what was answered."""
    said: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for number in range(kills):
        with serving(folder / "data", folder / "log") as server:
            check_answers(server.url, said, counts)
            clients = [
                threading.Thread(target=ask_for_clips, args=(server.url, random.Random(9 * number + i), said))
                for i in range(4)
            ]
            for client in clients:
                client.start()
            time.sleep(draw.uniform(0.1, 3.0))
            server.kill()
            for client in clients:
                client.join()
        check(folder / "data", said)
    with serving(folder / "data", folder / "log") as server:
        check_answers(server.url, said, counts)
        wait_until_idle(server)
        check_answers(server.url, said, counts)
        require(server.stop() == 0, "it didn't end well")
    check(folder / "data", said)
    log = (folder / "log").read_text()
    require("Traceback" not in log, log[-3000:])
    numbers = {what: len(ids) for what, ids in sorted(said.items())}
    return (
        f"{kills} kills, jobs {numbers}, {counts['files']} files served whole, {counts['refused']} not there"
    )


def ask_for_clips(url: str, draw: random.Random, said: dict[str, set[str]]) -> None:
    """Until the server is gone. What it has answered is in `said`."""
    with httpx.Client(base_url=url, timeout=60) as client:
        try:
            while True:
                body = {
                    "prompt": "piano",
                    "duration": draw.choice((0.1, 0.2, 1.0)),
                    "takes": draw.choice((1, 2)),
                    "format": draw.choice(("wav", "flac", "mp3", "ogg")),
                    "normalize": draw.choice(("none", "peak")),
                }
                job = client.post("/api/jobs", json=body).raise_for_status().json()
                said.setdefault("submitted", set()).add(job["id"])
                while draw.random() < 0.98 and job["status"] in ("queued", "running"):
                    time.sleep(0.02)
                    job = client.get(f"/api/jobs/{job['id']}").raise_for_status().json()
                if job["status"] != "done":
                    continue  # with another one, while this one waits
                said.setdefault("done", set()).add(job["id"])
                if draw.random() < 0.3:
                    client.patch(f"/api/jobs/{job['id']}", json={"favourite": True}).raise_for_status()
                    said.setdefault("favourite", set()).add(job["id"])
                elif draw.random() < 0.3:
                    client.delete(f"/api/jobs/{job['id']}").raise_for_status()
                    said.setdefault("removed", set()).add(job["id"])
        except httpx.TransportError:
            return


def all_jobs(client: httpx.Client) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    before: str | None = ""
    while before is not None:
        page = client.get("/api/jobs", params={"limit": 100} | ({"before": before} if before else {})).json()
        jobs += page["jobs"]
        before = page["before"]
    return jobs


def check_answers(url: str, said: dict[str, set[str]], counts: Counter[str]) -> None:
    """What is done has whole files, the rest none; nothing that was answered is forgotten."""
    with httpx.Client(base_url=url, timeout=60) as client:
        jobs = {job["id"]: job for job in all_jobs(client)}
        for id in said.get("done", set()) & jobs.keys():
            require(jobs[id]["status"] == "done", f"{id} was done, and is {jobs[id]['status']}")
        for job in random.Random(len(jobs)).sample([*jobs.values()], min(20, len(jobs))):
            for clip in job["clips"]:
                answer = client.get(clip["audio"], params={"format": job["recipe"]["format"]})
                if answer.status_code != 200:
                    require(job["status"] != "done", f"a clip of a job that is done: {answer.text}")
                    require(answer.status_code in (404, 409), answer.text)
                    counts["refused"] += 1
                    continue
                counts["files"] += 1
                path = Path(tempfile.gettempdir()) / "served"
                path.write_bytes(answer.content)
                frames = soundfile.info(path).frames
                require(frames == round(clip["duration"] * 32000), f"{frames} samples of {clip}")
                path.unlink()


def wait_until_idle(server: ServerProcess) -> None:
    end = time.monotonic() + 300
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while any(job["status"] in ("queued", "running") for job in all_jobs(client)):
            require(time.monotonic() < end, "what waited is never made")
            time.sleep(0.2)


# A training


def kill_trainings(kills: int, draw: random.Random, folder: Path) -> str:
    songs = folder / "songs"
    songs.mkdir()
    noise = np.random.default_rng(0)
    for name in "abcde":
        soundfile.write(songs / f"{name}.wav", noise.uniform(-0.3, 0.3, 40000), 32000)
        (songs / f"{name}.txt").write_text(f"tune {name}")
    words = [str(songs), "-m", "demo", "--crop", "1.2", "--iters", str(STEPS), "--batch-size", "2"]
    words += ["--rank", "2", "--warmup", "1", "--save-every", "1"]
    seconds = run("train", [*words, "-o", "whole"], folder)
    done = runs = 0
    while done < kills:
        output = f"out{runs}"
        while True:
            resume = ["--resume"] if any((folder / output).glob("checkpoint-*")) else []
            process = start("train", [*words, "-o", output, *resume], folder)
            if not (done < kills and killed_within(process, draw.uniform(0.2, 0.8) * seconds, folder)):
                status, log = process.wait(), (folder / "log").read_text()
                require(status == 0 or IS_COMPLETE in log, log)
                break
            done += 1
        runs += 1
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            same = (folder / output / name).read_bytes() == (folder / "whole" / name).read_bytes()
            require(same, f"{name} is another one")
        histories = [json.loads((folder / each / "training.json").read_text()) for each in (output, "whole")]
        losses = [[step[:2] for step in each["history"]["steps"]] for each in histories]
        require(losses[0] == losses[1], "other losses")
        require(not parts_left(folder / output), f"left: {parts_left(folder / output)}")
        shutil.rmtree(folder / output)
    return f"{done} kills, {runs} trainings of {STEPS} steps, weights equal bit for bit"


# Workers of a cluster


def kill_workers(kills: int, draw: random.Random, folder: Path) -> str:
    """Two of them: one is killed while it makes clips, and another one started, twice in a list.

    (A clip that three machines were lost with isn't tried again.)
    """
    whole = folder / "whole"
    whole.mkdir()
    write_list(whole)
    run("generate", [*LIST, "--cluster", "local:1"], whole)
    done = runs = 0
    while done < kills:
        place = folder / f"{runs}"
        place.mkdir()
        write_list(place)
        logs = folder / f"logs{runs}"
        logs.mkdir()
        cluster = Cluster(logs)
        try:
            workers = [cluster.start_worker(), cluster.start_worker()]
            process = start("generate", [*LIST, "--cluster", cluster.address], place)
            for _ in range(2):
                made = len(clips_in(place))
                while process.poll() is None and len(clips_in(place)) <= made:
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 0.3))
                if process.poll() is None:
                    kill(workers.pop(draw.randrange(2)))
                    done += 1
                    workers.append(cluster.start_worker())
            require(process.wait(300) == 0, (place / "log").read_text())
        finally:
            cluster.close()
        runs += 1
        equal = check_clips(place, whole, complete=True)
        require(equal == CLIPS, f"only {equal} of {CLIPS} files are equal")
        shutil.rmtree(place)
    return f"{done} kills, {runs} lists of {CLIPS} clips, all files equal byte for byte"


if __name__ == "__main__":
    sys.exit(main())
