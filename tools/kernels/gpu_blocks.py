"""A transformer block forward and backward, and a training step, three ways on one GPU: torch, torch.compile, ours.

Ours is the lowered program with the kernels that won. Medians of device time; beside them what ran: the profiler's
kernels of one pass of ours, and the dispatcher's count of products on kernels.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cutlass_ops.tuning.tune import COMPILED, accelerator
from partitioner import Cluster, Plan, lower, search, trace
from runtime.mesh.bind import bind
from runtime.mesh.groups import Groups
from runtime.ranks.process_group import start_ranks
from runtime.train.parallelize import parallelize
from tools.kernels.gpu_table import MODELS
from tools.models.plain_decoder import Block, Decoder, Dimensions, decoder

BLOCKS = (("GPT-3 6.7B", 2), ("Llama-3 8B", 2))  # micro-batches of 2048 tokens
STEP, STEP_LAYERS, STEP_BATCH = "GPT-3 1.3B", 24, 4
WARMUP, RUNS = 5, 20
COMPILE_SECONDS = 120.0  # that torch.compile may take of a whole model
CLUSTERS = (("H200", "dgx-h200"), ("H100", "dgx-h100"), ("A100", "dgx-a100"))
OURS = re.compile(r"quack|cutlass_ops|kernel_cutlass", re.IGNORECASE)  # names of kernels that CuTe and nvcc made for us
Pass = Callable[[], object]


def measure(found: list[dict[str, Any]], left_out: list[str], database: Path, deadline: float) -> None:
    """Append a row for each block and for the step, in what time there is."""
    start_ranks()
    for model, micro_batch in BLOCKS:
        found.append(_block(model, micro_batch, database))
    if time.monotonic() < deadline:
        found.append(_step(database, left_out, deadline))
    else:
        left_out.append(f"{STEP} step: no time left")


def _block(model: str, micro_batch: int, database: Path) -> dict[str, Any]:
    size = MODELS[model]
    block = Block(size).to(accelerator(), torch.bfloat16)
    x = torch.randn(micro_batch, size.seq, size.hidden, device=accelerator(), dtype=torch.bfloat16, requires_grad=True)
    rotary = _rotary(size) if size.gated else None
    grad = torch.randn_like(x)
    ways: dict[str, Pass] = {
        "eager": _forward_backward(lambda: block(x, rotary), grad),
        "torch.compile": _forward_backward(_compiled(block, x, rotary), grad),
    }
    plan = _plan(size, micro_batch, database)
    groups, run = _ours(size, micro_batch, plan, block, x)
    ways["ours"] = _forward_backward(run, grad)
    times = {name: _median(way) for name, way in ways.items()}
    row = {"name": f"{model} block, {micro_batch * size.seq} tokens", "seconds": times}
    return row | _ran(ways["ours"], groups)


def _ours(
    size: Dimensions, micro_batch: int, plan: Plan, block: nn.Module, x: torch.Tensor
) -> tuple[Groups, Callable[[], torch.Tensor]]:
    """The program's first block on the block's own parameters; tables that it reads are random."""
    module, batch = decoder(size, x.dtype, micro_batch)
    program = lower(trace(module, batch), plan)
    groups = Groups(program)
    call = next(call for call in program.stages[0].calls if call.block == "blocks.0")
    bound = bind(call.module, groups)
    own = {f"blocks.0.{name}": p for name, p in block.named_parameters()}
    values = [n.meta["val"] for n in call.module.graph.nodes if n.op == "placeholder"]
    inputs: list[torch.Tensor] = []
    for name, value in zip(call.arguments, values, strict=True):
        table = torch.randn(value.shape, device=x.device).to(value.dtype)
        inputs.append(own.get(name, x if value.shape == x.shape else table))
    return groups, lambda: bound(*inputs)[0]


def _step(database: Path, left_out: list[str], deadline: float) -> dict[str, Any]:
    """AdamW on one micro-batch, the whole model."""
    size = replace(MODELS[STEP], layers=STEP_LAYERS)
    model = Decoder(size).to(accelerator(), torch.bfloat16).train()
    tokens = torch.randint(size.vocab, (STEP_BATCH, size.seq), device=accelerator())
    batch = {"tokens": tokens, "labels": tokens.roll(-1, 1)}
    plan = _plan(size, STEP_BATCH, database)
    engine = parallelize(model, batch, global_batch=STEP_BATCH, plan=plan, lr=1e-5)
    ways: dict[str, Pass] = {"ours": lambda: engine.step(batch), "eager": _train(model, model, batch)}
    if time.monotonic() + COMPILE_SECONDS < deadline:
        ways["torch.compile"] = _train(model, torch.compile(model, mode=COMPILED), batch)
    else:
        left_out.append(f"{STEP} step: no time left for torch.compile")
    times = {name: _median(way) for name, way in ways.items()}
    row = {"name": f"{STEP} step, {STEP_BATCH * size.seq} tokens", "seconds": times}
    return row | _ran(ways["ours"], engine.groups)


def _train(model: nn.Module, forward: Callable[..., torch.Tensor], batch: dict[str, torch.Tensor]) -> Pass:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        forward(**batch).backward()
        optimizer.step()

    return step


def _plan(size: Dimensions, micro_batch: int, database: Path) -> Plan:
    """One device's, with the database's winners."""
    module, batch = decoder(size, torch.bfloat16, micro_batch)
    name = torch.cuda.get_device_name()
    preset = next((preset for word, preset in CLUSTERS if word in name), "dgx-h100")
    cluster = replace(Cluster.load(preset, devices=1), kernels=str(database))
    pins: dict[str, str | int] = {"micro_batch": micro_batch, "recompute": "off"}
    return search(trace(module, batch), cluster, micro_batch, pins)


def _rotary(size: Dimensions) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (size.seq, size.hidden // size.heads)
    cos, sin = (torch.randn(shape, device=accelerator(), dtype=torch.bfloat16) for _ in range(2))
    return cos, sin


def _compiled(block: nn.Module, *arguments: Any) -> Callable[[], torch.Tensor]:
    function = torch.compile(block, mode=COMPILED, dynamic=False)
    return lambda: function(*arguments)


def _forward_backward(forward: Callable[[], torch.Tensor], grad: torch.Tensor) -> Pass:
    def run() -> None:
        y = forward()
        y.backward(grad.view_as(y))

    return run


def _median(run: Pass) -> float:
    """Of device time, by events around each run."""
    for _ in range(WARMUP):
        run()
    torch.cuda.synchronize()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(RUNS)]
    for start, end in pairs:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs) * 1e-3


def _ran(run: Pass, groups: Groups) -> dict[str, Any]:
    """What one pass of ours ran: kernels by name, those of our making, and the dispatcher's reasons."""
    groups.kernels.clear()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    names = Counter(event.name for event in profiler.events() or () if event.device_type == DeviceType.CUDA)
    ours = sum(count for name, count in names.items() if OURS.search(name))
    return {"dispatched": dict(groups.kernels), "ours": ours, "kernels": dict(names.most_common(30))}
