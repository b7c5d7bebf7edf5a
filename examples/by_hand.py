"""What a user writes with torch alone: data parallel training whose state is divided, or held in float32 beside bf16.

    python examples/by_hand.py --configs zero1 --json out.json

single     one process, float32: saves its updates in ``--ref``, with which those of the others are compared
zero1      DistributedDataParallel and ZeroRedundancyOptimizer
fsdp2      fully_shard of every block and of the rest
fsdp2bf16  the same, computed in bf16 and reduced in float32 by its MixedPrecisionPolicy
dp2bf16    a bf16 copy of float32 masters; gradients are made float32 and summed in one all_reduce

A step's time is that of the slowest rank, from one barrier; the median of the timed ones is written.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

OPTIONS: dict[str, Any] = {"momentum": 0.9}  # of SGD, so that there is a state to divide
CONFIGS = {"single": 1, "zero1": 2, "fsdp2": 2, "fsdp2bf16": 2, "dp2bf16": 2}
SIZES = {"layers": 4, "hidden": 256, "heads": 8, "seq": 128, "vocab": 4096, "batch": 16, "micro": 4}
FLOOR = 1e-2  # of the median update: a bias without a true gradient moves by rounding alone


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.q, self.k, self.v, self.out = (nn.Linear(hidden, hidden) for _ in range(4))
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, sizes: argparse.Namespace) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(sizes.vocab, sizes.hidden), nn.Embedding(sizes.seq, sizes.hidden)
        self.blocks = nn.ModuleList(Block(sizes.hidden, sizes.heads) for _ in range(sizes.layers))
        self.norm, self.head = nn.LayerNorm(sizes.hidden), nn.Linear(sizes.hidden, sizes.vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def loss_fn(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1).float(), y.flatten())


def data(sizes: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Two global batches of tokens and labels."""
    generator = torch.Generator().manual_seed(1)
    shape = (sizes.batch, sizes.seq)
    return [tuple(torch.randint(sizes.vocab, shape, generator=generator) for _ in range(2)) for _ in range(2)]  # pyright: ignore


def trainer(config: str, model: GPT, lr: float, world: int) -> Callable[[Tensor, Tensor], None]:
    """One step of this rank's samples."""
    forward: nn.Module = model
    if config.startswith("fsdp2"):
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policy = mixed if config.endswith("bf16") else MixedPrecisionPolicy()
        mesh = init_device_mesh("cpu", (world,))
        for part in (*model.blocks, model):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    if config == "zero1":
        forward = DistributedDataParallel(model)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=lr, **OPTIONS)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, **OPTIONS)
    if config == "dp2bf16":
        return _with_masters(model, optimizer, world)

    def step(x: Tensor, y: Tensor) -> None:
        loss_fn(forward(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _with_masters(model: GPT, optimizer: torch.optim.Optimizer, world: int) -> Callable[[Tensor, Tensor], None]:
    masters = list(model.parameters())
    copies = [m.detach().to(torch.bfloat16).requires_grad_() for m in masters]
    named = dict(zip((name for name, _ in model.named_parameters()), copies, strict=True))

    def step(x: Tensor, y: Tensor) -> None:
        loss_fn(torch.func.functional_call(model, named, (x,)), y).backward()
        gradients = [c.grad for c in copies if c.grad is not None]
        flat = torch.cat([g.flatten().float() for g in gradients])
        dist.all_reduce(flat)
        flat /= world
        for master, part in zip(masters, flat.split([m.numel() for m in masters]), strict=True):
            master.grad = part.view_as(master)
        optimizer.step()
        with torch.no_grad():
            for master, copy in zip(masters, copies, strict=True):
                copy.copy_(master)
                copy.grad = None

    return step


def update_error(model: GPT, start: dict[str, Tensor], path: str) -> float:
    """The worst relative error of a parameter's update."""
    wanted, worst = torch.load(path), 0.0
    floor = FLOOR * statistics.median(float(t.norm()) for t in wanted.values())
    for name, parameter in model.named_parameters():
        now = parameter.detach()
        now = now.full_tensor() if isinstance(now, DTensor) else now
        update = now - start[name] - wanted[name]
        worst = max(worst, float(update.norm()) / max(float(wanted[name].norm()), floor))
    return worst


def rank_main(rank: int, config: str, options: argparse.Namespace, port: int) -> None:
    world = CONFIGS[config]
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = GPT(options)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    step, each = trainer(config, model, options.lr, world), options.batch // world
    batches, times = data(options), list[float]()
    for n in range(options.warmup + options.steps):
        if world > 1:
            dist.barrier()
        began = time.perf_counter()
        step(*(t[rank * each : (rank + 1) * each] for t in batches[n % 2]))
        took = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
        if world > 1:
            dist.all_reduce(took, dist.ReduceOp.MAX)
        times.append(float(took))
    error = None
    if config == "single":
        torch.save({name: p.detach() - start[name] for name, p in model.named_parameters()}, options.ref)
    elif options.ref:
        error = update_error(model, start, options.ref)
    row = {"config": config, "step_s": statistics.median(times[options.warmup :]), "upd_err": error}
    if rank == 0 and options.json:
        Path(options.json).write_text(json.dumps({"results": [row]}))
    if rank == 0:
        print(row)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**SIZES, "steps": 6, "warmup": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--configs", choices=CONFIGS, default="zero1", help="which one")
    parser.add_argument("--ref", metavar="FILE", help="the updates of single")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.configs == "single" and not options.ref:
        parser.error("single writes its updates: name a file by --ref")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_main, (options.configs, options, port), CONFIGS[options.configs])  # pyright: ignore[reportPrivateImportUsage]


if __name__ == "__main__":
    main()
