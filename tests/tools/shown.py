"""Plans to look at: small models on a cluster whose links make dividing them worth it, so that all axes are used."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from examples.gpt import model
from partitioner import Cluster, Graph, Plan, search, trace
from partitioner.hardware.device import Attention, one_row
from partitioner.hardware.link import Link
from partitioner.precision import PRESETS
from runtime.report import Report, predicted_parts

A100 = Cluster.load("dgx-a100", devices=8)
DEVICE = replace(  # of this file's own, so that nothing that is shown hangs on what a preset was fitted to
    A100.device, products=one_row(A100.device.flops_per_second, 0.77, 0.92, 4e-6),
    attention=Attention(0.33, fixed_seconds=4e-6), memory_efficiency=0.92, sustained=1.0, spread=0.007,
    memory_bytes=80e9,
)  # fmt: skip
CLUSTER = replace(A100, device=DEVICE, node=Link(1e14, 1.0, 1e-7))
PINS: dict[str, str | int] = {"pp": 2, "dp": 2, "tp": 2, "zero": 0}
ENTRY = f"{Path(__file__).parents[2] / 'examples' / 'gpt.py'}:model"
SIZES = {"vocab": 256, "hidden": 64, "heads": 4, "seq": 32, "layers": 4}


@functools.cache
def graph() -> Graph:
    """Four blocks."""
    return trace(*model(**SIZES), precision=PRESETS["tf32"])


@functools.cache
def plan(**pins: str | int) -> Plan:
    """Pipeline, data and tensor parallel; ``pins`` beside or instead of PINS."""
    asked = {"entry": ENTRY, "settings": SIZES, "seq": None}
    return search(graph(), CLUSTER, 16, PINS | pins, asked)


def report(**slower: float) -> Report:
    """A run of the plan whose parts took so many times what was predicted."""
    found = plan()
    parts = {part: s * slower.get(part.split()[0], 1.0) for part, s in predicted_parts(found.cost).items()}
    asked, step = found.asked, sum(parts.values())
    return Report(
        asked, found.decisions, found.cost, 8, 3, (5.0, 4.0, 3.0), None, step, 2e9, parts, (step,) * 3,
        "cuda", "text", {},
    )  # fmt: skip
