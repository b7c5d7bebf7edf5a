"""``parallelize``: a plain model becomes an Engine that trains this rank's part; torchrun, srun or one process."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from partitioner import Cluster, Graph, Plan, lower, search, trace
from partitioner.errors import InputError
from partitioner.lowering.program import Program
from partitioner.plan.check import check_trains
from partitioner.precision import OWN, Precision, preset
from partitioner.user_code.compiled import unwrapped
from runtime.execute.keep_heap import keep_freed_memory
from runtime.mesh.groups import Groups
from runtime.ranks.limits import START_SECONDS, Limits
from runtime.ranks.process_group import all_here, everywhere, largest, saving_group, start_ranks
from runtime.ranks.watchdog import Watchdog
from runtime.state.learning_rates import LrLambda
from runtime.state.module_start import ModuleStart
from runtime.state.optimizer import Given, check_options, factory
from runtime.state.parameters import materialize
from runtime.state.shard_pieces import part_of
from runtime.state.whole_updates import check_updates
from runtime.train.answer_programs import AnswerMaker
from runtime.train.engine import Engine
from runtime.train.forms import Making
from runtime.train.trace_forms import TraceForms


def parallelize(
    model: nn.Module,
    batch: Mapping[str, torch.Tensor],
    *,
    global_batch: int,
    plan: Plan | Path | str | None = None,
    cluster: Cluster | Path | str | None = None,
    pins: Mapping[str, str | int] | None = None,
    weights: Path | str | None = None,
    optimizer: Given = torch.optim.AdamW,
    clip: float | None = None,
    lr_lambda: LrLambda | None = None,
    precision: Precision | str | None = None,
    patience: float = 1.0,
    skip_nonfinite: bool = False,
    lengths: int = 8,
    padding: Mapping[str, float] | None = None,
    **options: Any,
) -> Engine:
    """Train ``model`` under ``plan`` on all ranks; ``batch`` is an example, ``options`` go to the optimizer (lr, ...).

    ``plan=None`` searches one, with ``pins`` as ``search`` takes them, for ``cluster``: one, a preset's name or a file,
    of which as many nodes or devices are taken as there are ranks; by default the CPU preset. A real module gives the
    initial weights; one on meta takes them from ``weights`` (a safetensors folder) or draws them from the plan's seed.
    ``optimizer`` is a class, a partial of one, or a function of (name, parameter) pairs that returns one, of groups as
    it likes (``runtime.parameter_groups``). ``lr_lambda`` gives factors of the learning rate by step; without one the
    rate is what ``engine.optimizer`` says, so that a scheduler of torch's or a hand may change it. ``precision``: a
    preset's name or a Precision; None is the plan's, and without a plan the model's own data types. ``patience``
    multiplies the seconds after which a start, a step or a save counts as hung and ends all ranks
    (``runtime.ranks.limits``). ``skip_nonfinite``: a step whose loss or gradients are no numbers updates nothing and is
    counted, instead of raising. Batches of other lengths than the example get a Program each, of which ``lengths`` are
    kept; beyond, they are padded with the values of ``padding`` by input (``{"input_ids": 0, "labels": -100}``), or the
    one used least lately is let go. ``model`` is traced again for them, and for evaluation, and must stay as it is.
    Raises TypeError for an option that the optimizer has not, InputError for a plan of another model, world size, batch
    or precision, and for an optimizer that needs whole what the plan divides.
    """
    check_options(optimizer, options, list(inspect.signature(parallelize).parameters))
    found = _given(plan, global_batch)
    if found and (cluster is not None or pins):
        raise InputError("a plan was given, and a cluster or pins to search one: leave out one or the other")
    start_ranks(START_SECONDS * patience)
    graph = trace(model, dict(batch), global_batch=global_batch, precision=_precision(precision, found))
    chosen = found or _searched(graph, cluster, global_batch, pins or {})
    program = lower(graph, chosen)
    limits = Limits(chosen.cost.step_seconds, patience)
    forms = TraceForms(model, batch, chosen, {n: p.stages for n, p in program.parameters.items()})
    making = Making(forms.program, lengths, padding or {}, bool(graph.inseparable))
    made = engine(program, model, weights, optimizer, clip, lr_lambda, limits, options, skip_nonfinite, making)
    made.answers = AnswerMaker(model, batch, chosen, forms.stages)
    return made


def engine(
    program: Program,
    model: nn.Module,
    weights: Path | str | None,
    optimizer: Given,
    clip: float | None,
    lr_lambda: LrLambda | None,
    limits: Limits | None,
    options: Mapping[str, Any],
    skip_nonfinite: bool = False,
    making: Making | None = None,
) -> Engine:
    """An Engine whose parameters come from ``weights``, from the module, or from the program's seed."""
    with _limited(limits and limits.start, "making the groups"):
        groups, saving = Groups(program), saving_group()
    if groups.device.type == "cpu":
        keep_freed_memory()
    else:
        torch.set_float32_matmul_precision("high" if program.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = program.tf32  # of convolutions, on unless somebody says no
    is_meta = any(p.is_meta for p in model.parameters())
    source = weights if weights is not None else ModuleStart(model, program.seed) if is_meta else model
    with _limited(limits and limits.state(largest(_part_bytes(program, groups))), "making the parameters"):
        _check_built_alike(source)
        parameters = materialize(program, groups.coordinates, source, groups.device)
        _tell_unset(source)
        if limits is not None:
            all_here()  # in the time that the rank may take that reads most
    made = factory(optimizer, **options)
    check_updates(program, made, groups.device)
    with _limited(limits and limits.start, "making the engine"):
        return Engine(
            program, groups, parameters, made, clip, lr_lambda, limits, saving=saving, skip_nonfinite=skip_nonfinite,
            making=making, buffers=_buffers(model),
        )  # fmt: skip


def _tell_unset(source: object) -> None:
    """Say which parameters nothing sets that is known."""
    unset = source.unset if isinstance(source, ModuleStart) else []
    if unset:
        names = ", ".join(unset[:3]) + (f" and {len(unset) - 3:,} more" if len(unset) > 3 else "")
        words = "they are drawn, as a norm's, a bias's or a matrix's"
        warnings.warn(f"nothing that is known sets {names}: {words}", stacklevel=4)


def _check_built_alike(source: object) -> None:
    """All ranks have built the module of the same draws."""
    found = everywhere(source.draws if isinstance(source, ModuleStart) else "")
    if len(set(found)) > 1:
        rank = next(n for n, word in enumerate(found) if word != found[0])
        words = "build it, and seed torch, the same way on all ranks"
        raise InputError(f"rank {rank} has drawn otherwise than rank 0 while it built the model: {words}")


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Those that are of the model's state, and have values."""
    with unwrapped(model) as plain:
        named = dict(plain.named_buffers(remove_duplicate=False))
        return {name: named[name] for name in plain.state_dict() if name in named and not named[name].is_meta}


def _limited(seconds: float | None, what: str) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if seconds is None else Watchdog(seconds, what)


def _part_bytes(program: Program, groups: Groups) -> float:
    """Of the parameters that this rank holds."""
    parts = ((p, part_of(program, p, groups.coordinates)) for p in program.parameters.values())
    return float(sum(math.prod(part.shape) * p.dtype.itemsize for p, part in parts))


def _searched(
    graph: Graph, cluster: Cluster | Path | str | None, global_batch: int, pins: Mapping[str, str | int]
) -> Plan:
    world = dist.get_world_size() if dist.is_initialized() else 1
    if cluster is None and torch.accelerator.is_available():
        raise InputError("no plan and no cluster were given: name a cluster, for example cluster='dgx-h100'")
    found = cluster if isinstance(cluster, Cluster) else Cluster.load(cluster or "local-cpu").of_ranks(world)
    return search(graph, found, global_batch, pins)


def _precision(asked: Precision | str | None, plan: Plan | None) -> Precision:
    own = plan.decisions.precision if plan else OWN
    found = own if asked is None else preset(asked) if isinstance(asked, str) else asked
    if plan and found != own:
        raise InputError(f"the plan's precision is {own}, not {found}: leave it out, or plan again")
    return found


def _given(plan: Plan | Path | str | None, global_batch: int) -> Plan | None:
    if plan is None:
        return None
    found = plan if isinstance(plan, Plan) else Plan.load(plan)
    check_trains(found)
    if found.global_batch != global_batch:
        raise InputError(f"the plan is for a global batch of {found.global_batch}, not {global_batch}: plan again")
    return found
