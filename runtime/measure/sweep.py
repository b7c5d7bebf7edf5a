"""Times a machine's devices and links, all ranks at work together: what ``partitioner calibrate`` fits a cluster to.

    for each round    for each probe    barrier, as many calls as fill the window, their mean    --> median of rounds

A call between ranks comes behind a product, whose own time is subtracted: as in a step, ranks are not quite at one,
caches hold something else, and whoever waits sleeps.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from partitioner.errors import InputError
from runtime.execute.keep_heap import keep_freed_memory
from runtime.measure.device_probes import Call, Probe, device_probes, keeps_scores
from runtime.measure.link_probes import PAYLOADS, Link, exchange, link_probes, links_of
from runtime.ranks.process_group import everywhere, finish_ranks, is_first, largest, start_ranks

MOST_CALLS = 400
ROUNDS, QUICK_ROUNDS = 5, 2
WINDOW_SECONDS, QUICK_WINDOW_SECONDS = 0.05, 0.01
SIDES, PRODUCTS = {"cpu": 512, "cuda": 4096}, 6  # of a product between calls; how many something may hide behind
LEAST_SECONDS = 1e-6
Works = list[dist.Work]
Say = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Sample:
    """A probe's seconds for one call: the mean of the ranks, of a collective the slowest rank's."""

    kind: str
    dtype: str
    size: tuple[int, ...]
    ranks: int
    nodes: int
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """All samples and what the device says of itself; ``spread``: relative standard deviation of the ranks' speed.

    ``hidden_share`` and ``hidden_sends``: of an all_reduce and of a send, what passes beside products.
    """

    ranks: int
    nodes: int
    device: str
    kind: str
    memory_bytes: float
    multiprocessors: int
    keeps_scores: bool
    hidden_share: float
    hidden_sends: float
    spread: float
    torch: str
    samples: tuple[Sample, ...]

    @staticmethod
    def from_json(text: str) -> Sweep:
        """The inverse of ``json.dumps(asdict(sweep))``."""
        data = json.loads(text)
        rows = tuple(Sample(size=tuple(row.pop("size")), **row) for row in data.pop("samples"))
        return Sweep(**data, samples=rows)


def sweep(quick: bool, say: Say) -> Sweep:
    """Measure on all ranks of the process group; the same result on every rank. Raises InputError for one rank."""
    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise InputError("one rank has no link to measure: start at least 2")
    world, local = dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", str(dist.get_world_size())))
    if world % local:
        raise InputError(f"{world} ranks on nodes of {local} do not divide: start as many on each node")
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_freed_memory()
    memory = _memory_bytes(device, local)
    links = list(links_of(world, local))
    probes = [*device_probes(device, quick), *link_probes(links, device, quick)]
    rows = everywhere(_measure(probes, device, quick, say))
    samples = [
        Sample(p.kind, str(p.dtype).removeprefix("torch."), p.size, p.ranks, p.nodes, _combined(p, found))
        for p, found in zip(probes, map(list, zip(*rows, strict=True)), strict=True)
    ]
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return Sweep(
        world, world // local, device_name(device), device.type, memory, multiprocessors, keeps_scores(device),
        _hidden_share(device, links, _reduced), _hidden_share(device, links, _sent), _spread(probes, rows),
        torch.__version__, tuple(samples),
    )  # fmt: skip


def _combined(probe: Probe, rows: list[list[float]]) -> float:
    """Of a probe's seconds by rank and round."""
    if probe.ranks > 1:
        return statistics.median(max(each) for each in zip(*rows, strict=True))
    return statistics.fmean(statistics.median(row) for row in rows)


def _spread(probes: list[Probe], rows: list[list[list[float]]]) -> float:
    products = [n for n, p in enumerate(probes) if p.kind == "gemm"]
    speeds = [statistics.fmean(1 / statistics.median(row[n]) for n in products) for row in rows]
    return statistics.pstdev(speeds) / statistics.fmean(speeds)


def _measure(probes: list[Probe], device: torch.device, quick: bool, say: Say) -> list[list[float]]:
    """This rank's seconds a call, by probe and round; rounds lie apart, so that a disturbance spoils one of them."""
    window, rounds = (QUICK_WINDOW_SECONDS, QUICK_ROUNDS) if quick else (WINDOW_SECONDS, ROUNDS)
    found: list[list[float]] = [[] for _ in probes]
    for number in range(rounds):
        for n, probe in enumerate(probes):
            timed = _seconds_behind_a_product if probe.ranks > 1 else _seconds
            found[n].append(timed(probe.make(), device, window) / probe.calls)
            say(number * len(probes) + n + 1, rounds * len(probes), probe.kind)
    return found


def _seconds(call: Call, device: torch.device, window: float) -> float:
    """Seconds of one call, the mean of a window that all ranks fill at once; equally many calls on all."""
    _elapsed(call, device, 1)
    once = largest(_elapsed(call, device, 1))
    return _elapsed(call, device, max(2, min(MOST_CALLS, int(window / once))))


def _seconds_behind_a_product(call: Call, device: torch.device, window: float) -> float:
    product = _product(device)

    def both() -> None:
        product()
        call()

    return max(_seconds(both, device, window) - _seconds(product, device, window), LEAST_SECONDS)


def _product(device: torch.device) -> Call:
    side = SIDES[device.type]
    x, y = torch.ones(side, side, device=device), torch.empty(side, side, device=device)
    return lambda: torch.mm(x, x, out=y)


def _elapsed(call: Call, device: torch.device, calls: int) -> float:
    dist.barrier()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / calls


def _hidden_share(device: torch.device, links: list[Link], start: Callable[[torch.Tensor, Link], Works]) -> float:
    """How much of what ``start`` starts on the largest group passes beside products, of what could."""
    link = max(links, key=lambda found: found.ranks)
    x, product = torch.ones(PAYLOADS[device.type][-1] // 4, device=device), _product(device)

    def compute() -> None:
        for _ in range(PRODUCTS):
            product()

    def moved() -> None:
        for work in start(x, link):
            work.wait()

    def both() -> None:
        works = start(x, link)
        compute()
        for work in works:
            work.wait()

    rows = [[largest(_seconds(call, device, WINDOW_SECONDS)) for call in (compute, moved, both)] for _ in range(3)]
    shares = [(a + b - together) / min(a, b) for a, b, together in rows]
    return max(0.0, min(1.0, statistics.median(shares)))


def _reduced(x: torch.Tensor, link: Link) -> Works:
    work = dist.all_reduce(x, group=link.group, async_op=True)
    return [work] if work is not None else []


def _sent(x: torch.Tensor, link: Link) -> Works:
    return exchange(x, torch.empty_like(x), link)


def _memory_bytes(device: torch.device, local: int) -> float:
    """The device's; on a CPU a rank's share of what the system calls available."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    table = Path("/proc/meminfo")
    rows = dict(line.split(":", 1) for line in table.read_text().splitlines()) if table.exists() else {}
    if "MemAvailable" in rows:
        return 1024.0 * float(rows["MemAvailable"].split()[0]) / local
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / local


def device_name(device: torch.device) -> str:
    """Of a CPU with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()}, {os.cpu_count()} cores"


def main(quick: bool) -> None:
    """One local rank: progress and the result as lines of JSON from rank 0."""
    start_ranks()
    found = sweep(quick, lambda done, of, what: _say({"done": done, "of": of, "what": what}))
    _say({"sweep": json.dumps(asdict(found))})
    finish_ranks()


def _say(event: dict[str, object]) -> None:
    if is_first():
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1] == "quick")
