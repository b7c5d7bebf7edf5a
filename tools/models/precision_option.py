"""``--precision NAME --float32 PATTERN``: in which data types a plan computes, and what is taken where nobody says."""

from __future__ import annotations

import argparse

from partitioner.cluster import Cluster
from partitioner.precision import BRAIN, OWN, PRESETS, Precision, preset

HELP = f"one of {', '.join(PRESETS)}; default: bf16 on GPUs, the model's own data types on CPUs"


def declare(command: argparse.ArgumentParser, words: str = HELP) -> None:
    """Add both options."""
    command.add_argument("--precision", metavar="NAME", help=words)
    command.add_argument(
        "--float32", action="append", default=[], metavar="PATTERN", help="modules that compute in float32, as *.norm"
    )


def asked(options: argparse.Namespace, otherwise: Precision) -> Precision:
    """What the options ask for; raises InputError for an unknown name, and for patterns where nothing is cast."""
    if options.precision is None and not options.float32:
        return otherwise
    if options.precision is None:
        return otherwise.with_float32(tuple(options.float32))
    return preset(options.precision, tuple(options.float32))


def usual(cluster: Cluster) -> Precision:
    """On devices of several multiprocessors that multiply in bfloat16, GPUs, bf16."""
    device = cluster.device
    is_gpu = device.multiprocessors > 1 and BRAIN in device.flops_per_second
    return PRESETS["bf16"] if is_gpu else OWN
