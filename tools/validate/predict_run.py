"""A published run's step time and memory, predicted: its model traced, exactly its configuration priced."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from partitioner import Cluster, trace
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_units
from partitioner.cost.unit_cost import Priced
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.resize_batch import at_batch, resize
from partitioner.graph.tied_blocks import Folded, fold
from partitioner.layouts.solution import Solution
from partitioner.plan.derived_rows import Cost
from partitioner.plan.parallelism import Parallelism, mesh_of
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, NO_RECOMPUTE
from partitioner.precision import PRESETS, SINGLE, Precision
from partitioner.schedule.tables import plainest
from partitioner.searching.candidates import divisors
from partitioner.searching.pins import read_pins
from partitioner.software import Software
from partitioner.solve.axis_by_axis import solve_axes
from partitioner.step.cut_stages import StageCuts
from partitioner.step.split import Split, stage_sums
from partitioner.step.step_seconds import price
from tools.models.plain_decoder import COLUMNS_AND_ROWS, Dimensions, decoder
from tools.validate.published_runs import DTYPES, Run
from tools.validate.published_sources import Sources

_SERVER = 16  # GPUs that a server has at most: more are a rack whose GPUs share one network of links
_SPEED = re.compile(r"(?:(\d+)x)?(\d+) ?Gb(?:/s|ps)? ?[A-Za-z]*(?: [A-Za-z]+)? per (node|GPU)")


Change = Callable[[Run, Cluster], Cluster]


class Rerun:
    """Predicts runs; a shape is traced once, and each of its layouts solved once.

    ``change`` may replace the cluster of a run: to fit its numbers.
    """

    def __init__(self, known: Sources, change: Change = lambda run, cluster: cluster) -> None:
        self.known, self.change = known, change
        self.traced, self.folded, self.sized = cache(_traced), cache(self._folded), cache(self._sized)
        self.solved: dict[object, tuple[Setting, Solution]] = {}
        self.priced: dict[object, Priced] = {}

    def stated(self, run: Run) -> Run:
        """With what the row leaves open: ZeRO and sequence parallelism as its program has them, nothing recomputed.
        Raises InputError as ``predict`` does."""
        software = self.cluster(run).software
        divides = run.sequence_parallel
        if divides is None:
            divides = run.tp > 1 and bool(_longest(self.known.sequence_parallel, run.framework))
        found = replace(run, zero=_zero(run, software), sequence_parallel=divides)
        return found if run.recompute else replace(found, recompute=NO_RECOMPUTE)

    def others(self, run: Run) -> dict[str, Run]:
        """What a row leaves open decided otherwise than ``stated`` does, by what that is."""
        stated, found = self.stated(run), dict[str, Run]()
        if not run.recompute:
            found["all blocks are recomputed"] = replace(stated, recompute=FULL_RECOMPUTE)
        if run.zero is None and run.dp > 1:
            zero = 0 if stated.zero else 1
            found[f"ZeRO is {zero}"] = replace(stated, zero=zero)
        return found

    def predict(self, run: Run) -> Cost:
        """The run's predicted step, as ``stated``; raises InputError with the reason why its row can't be expressed."""
        if run.strange:
            raise InputError(run.strange)
        run = self.stated(run)
        cluster = self.change(run, self.cluster(run))
        alike = replace(cluster, nodes=1)  # layouts are of one tp group, however many there are
        solved = self._solved(run, alike)
        key = (id(solved), str(alike))
        if key not in self.priced:
            self.priced[key] = price_units(*solved, alike)
        priced = replace(self.priced[key], cluster=cluster)
        return price(priced, split_of(run, priced))

    def cluster(self, run: Run) -> Cluster:
        """The preset of the row's GPU, the network that it states, and its program, with what the row says of it."""
        name = self.known.cluster.get(run.cluster) or _longest(self.known.device, run.gpu)
        if name is None:
            raise InputError(f"no preset for GPU {run.gpu}")
        framework = _longest(self.known.framework, run.framework)
        if framework is None:
            raise InputError(f"nothing is known of the program {run.framework}")
        stated = {
            "overlap_gradients": run.overlap_gradients,
            **({} if run.overlap_tensor is None else {"overlap_tensor": run.overlap_tensor}),
            **({"fused": True} if run.compiled else {}),
            **({"sends_quantized": False} if run.precision.endswith("-rows") else {}),  # torchao gathers 16 bits then
        }
        found = Cluster.load(name, software=framework)
        is_rack = found.node_devices > _SERVER
        most = min(found.node_devices, run.gpus)
        domain = max(n for n in divisors(run.gpus) if n <= most) if is_rack else run.gpus_per_node
        found = replace(found, node_devices=domain, nodes=max(1, -(-run.gpus // domain)))
        own = run.cluster in self.known.cluster
        network = found.network if own else replace(found.network, bytes_per_second=_network(run, found))
        network = replace(network, **next((v for k, v in self.known.link.items() if k in run.interconnect), {}))
        return replace(found, network=network, software=replace(found.software, **stated))

    def _solved(self, run: Run, cluster: Cluster) -> tuple[Setting, Solution]:
        """The layouts of the row's tensor parallelism: every product by columns, then by rows, tables by vocabulary."""
        sized = self.sized(run.size, precision_of(run, cluster.software.gradients), run.micro_batch)
        boundary = ("sharded" if run.sequence_parallel else "whole") if run.tp > 1 else ""
        many = run.global_batch // (run.dp * run.micro_batch)
        program = replace(cluster.software, efficiency=1.0, dispatch_seconds=0.0, enqueue_seconds=0.0)  # no layout
        key = (id(sized), run.tp, run.cp, many, boundary, cluster.attention, program)
        if key not in self.solved:
            fixed = read_pins({"boundary": boundary, **COLUMNS_AND_ROWS} if boundary else {}, sized.graph)
            setting = Setting.of(sized, cluster, run.degrees)
            allowed = fixed.allows(sized)
            self.solved[key] = setting, solve_axes(setting, cluster, [many], lambda axis: allowed)[many]
        return self.solved[key]

    def _sized(self, size: Dimensions, precision: Precision, micro_batch: int) -> Folded:
        folded = self.folded(size, precision)
        return at_batch(folded, micro_batch) or fold(resize(folded.graph, micro_batch))

    def _folded(self, size: Dimensions, precision: Precision) -> Folded:
        return fold(replace(self.traced(size, precision.compute), precision=precision))


def _zero(run: Run, software: Software) -> int:
    """As the row states; or 1, a framework's distributed optimizer, or as far as it always divides."""
    plans = software.plans
    return run.zero if run.zero is not None else 1 if plans is None or 1 in plans.zero else max(plans.zero)


def _traced(size: Dimensions, dtype: str) -> Graph:
    """Parameters are of the type in which they compute, so that nothing needs a cast."""
    return trace(*decoder(size, getattr(torch, dtype)))


def precision_of(run: Run, gradients: str) -> Precision:
    """Of the row's data type, beside which its program adds up ``gradients`` in one, and holds float32 masters."""
    dtype, recipe = DTYPES[run.precision]
    if dtype == SINGLE:
        return PRESETS["tf32"]
    return Precision(compute=dtype, gradients=gradients, state=SINGLE, products=recipe)


def _longest(table: Mapping[str, Any], name: str) -> Any:
    """The entry with the longest key that a name begins with."""
    keys = [key for key in table if name.startswith(key)]
    return table[max(keys, key=len)] if keys else None


def _network(run: Run, preset: Cluster) -> float:
    """Bytes a second of one GPU's port: the stated speed, reached as the preset reaches its own."""
    found = _SPEED.search(run.interconnect)
    if found is None:
        return preset.network.bytes_per_second
    bits = int(found[1] or 1) * int(found[2]) * 1e9
    devices = run.gpus_per_node if found[3] == "node" else 1
    return bits / 8 / devices


def split_of(run: Run, priced: Priced) -> Split:
    """The row's stages, as its program cuts them, recomputed blocks and mesh."""
    many, software = run.pp * run.virtual, priced.cluster.software
    cuts, slots = StageCuts(priced), software.plans is not None and software.plans.end_slots
    units = (() if software.balanced else cuts.as_many_blocks(many, slots)) or cuts.evenest(many)
    if not units:
        raise InputError(f"{run.size.layers} layers can't be cut into {run.pp * run.virtual} stages")
    way = {"layers": "full"}.get(run.recompute, run.recompute)
    known = {u: stage_sums(priced, u, () if way == "none" else (way,)) for u in dict.fromkeys(units)}
    sums = tuple(known[u] for u in units)
    share = {"none": 0.0, "layers": 0.5}.get(run.recompute, 1.0)
    counts = tuple(round(s.blocks * share) for s in sums)
    mesh = mesh_of(**run.degrees)
    parallelism = Parallelism(
        mesh=mesh, order=tuple(mesh), micro_batch=run.micro_batch,
        micro_batches=run.global_batch // (run.dp * run.micro_batch), schedule=plainest(run.virtual),
        virtual=run.virtual, recompute=way, zero=run.zero or 0,
        zero_group=run.zero_group or 0,
    )  # fmt: skip
    return Split(parallelism=parallelism, stages=sums, units=units, recomputed=counts)
