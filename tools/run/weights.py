"""``partitioner import`` and ``partitioner export``: Hugging Face safetensors to a checkpoint of a plan, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from partitioner import Graph, Plan, trace
from partitioner.errors import InputError
from partitioner.lowering.program import Parameter, Program, Stage
from partitioner.plan.parallelism import mesh_of
from partitioner.sharding.layout import WHOLE, everywhere
from partitioner.sharding.mesh_axes import laid_axes
from runtime.checkpoint.load import load as load_checkpoint
from runtime.checkpoint.record import Progress
from runtime.checkpoint.save import Saver
from runtime.mesh.groups import Groups
from runtime.state.export_weights import export_safetensors
from runtime.state.parameters import materialize
from tools.models.load import Source, load, save_config
from tools.screen import output


def import_command(options: argparse.Namespace) -> int:
    """Write a step-0 checkpoint of the weights; a run's ``--checkpoint`` takes it."""
    program, groups, _ = _single(options.plan)
    parameters = materialize(program, groups.coordinates, Path(options.source), "cpu")
    made = Saver(None).save(Path(options.target), program, groups, parameters, None, Progress(0, program.seed, 0))
    output().print(f"written to {made}")
    return 0


def export_command(options: argparse.Namespace) -> int:
    """Write ``model.safetensors`` (or its parts and index), and the configuration where the model has one."""
    program, groups, source = _single(options.plan)
    empty = {n: torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype), False) for n, p in program.parameters.items()}
    progress = load_checkpoint(options.source, program, groups, empty, None)
    export_safetensors(program, groups, empty, options.target)
    save_config(source, options.target)
    output().print(f"step {progress.step} written to {options.target}")
    return 0


def _single(path: str) -> tuple[Program, Groups, Source]:
    """The plan's parameters, whole, on a mesh of one rank, and the model."""
    plan = Plan.load(path)
    if not plan.model.get("entry"):
        raise InputError("the plan names no model to load: make it with partitioner plan MODEL")
    source = load(plan.model["entry"], plan.model["settings"], seq=plan.model.get("seq"), meta=True)
    graph: Graph = trace(source.module, source.batch)
    mesh = mesh_of()
    axes = laid_axes(mesh, {})
    parameters = {
        n: Parameter(p.names, p.shape, p.dtype, p.requires_grad, everywhere(WHOLE, axes), (0,), p.dtype)
        for n, p in graph.parameters.items()
    }
    seed = plan.decisions.seed
    stage = Stage(0, 0, None, None, (), (), (), tuple(parameters), None)  # it holds all and calls nothing
    program = Program((stage,), parameters, (), (), (), mesh, tuple(mesh), axes, 1, 1, (), seed, {})
    return program, Groups(program, torch.device("cpu")), source
