"""The options for several machines."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from audiocraft_mlx.clips.prompt_lines import ListedClip
from audiocraft_mlx.cluster.address import ClusterAddress, parse_cluster
from audiocraft_mlx.errors import UsageError


def add_cluster_options(add: Callable[..., object]) -> None:
    """`add` is that of a group."""
    add(
        "--cluster",
        metavar="WHERE",
        type=_cluster,
        help="have the clips made by the workers of a Dask scheduler, at tcp://HOST:PORT or tls://HOST:PORT, "
        "by local:N processes on this machine, or by ssh:FILE, a file with a machine on each line (needs the "
        "extra 'cluster')",
    )
    add(
        "--output-on-worker",
        metavar="FOLDER",
        type=Path,
        help="the workers write the clips, into this folder, which all of them see: names are relative to it "
        "(needs --cluster, and --output or output on each line)",
    )


def check_cluster_options(
    clips: Sequence[ListedClip],
    output: Path | None,
    cluster: ClusterAddress | None,
    output_on_worker: Path | None,
    one_machine: dict[str, bool],
) -> None:
    """Raise `UsageError` for options that don't go together.

    `one_machine`: which of the options are given that need the model here.
    """
    if cluster is None:
        if output_on_worker is not None:
            raise UsageError("--output-on-worker needs --cluster; use --output")
        return
    for option, given in one_machine.items():
        if given:
            raise UsageError(
                f"{option} needs the model on this machine, and --cluster has it on others; leave one of"
                " them out"
            )
    if output_on_worker is None:
        return
    if output is None and any(clip.path is None for clip in clips):
        raise UsageError("--output-on-worker needs names; give --output, or output on each line")
    if any(clip.request.loop and clip.takes > 1 for clip in clips):
        raise UsageError(
            "--output-on-worker and --takes of loops don't go together: which file a take gets is known"
            " when all are made; leave --output-on-worker out"
        )


def _cluster(text: str) -> ClusterAddress:
    try:
        return parse_cluster(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
