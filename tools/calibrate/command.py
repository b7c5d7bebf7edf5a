"""``partitioner calibrate``: the machine at hand as a cluster file, measured while all its ranks are at work."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
from dataclasses import asdict
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from partitioner.cluster import Cluster
from partitioner.errors import InputError
from partitioner.hardware.link import Link
from partitioner.whole_files import write_whole
from runtime.measure.sweep import Sample, Sweep, sweep
from runtime.ranks import launch
from runtime.ranks.process_group import finish_ranks, is_first, start_ranks
from runtime.report import Report
from tools.calibrate.fit_timings import LinkFit, fit, link_fits
from tools.calibrate.from_report import cluster_toml, corrected
from tools.screen import errors, output, seconds, size, table, written

LIMIT_SECONDS = 1800.0
CPU_RANKS = 4
DIGITS = 4


def calibrate_command(options: argparse.Namespace) -> int:
    """Start the ranks (unless this is one), fit, write, show."""
    path = Path(options.output)
    if path.suffix != ".toml":
        raise InputError(f"{path} is no cluster file: name it with .toml at its end")
    if not path.resolve().parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {path.parent} is not there")
    if options.report:
        return _correct(path, options)
    if "RANK" in os.environ:
        start_ranks()
        found = sweep(options.quick, lambda done, of, what: None)
        if is_first():
            _finish(found, path, options)
        finish_ranks()
        return 0
    found = _local(_ranks(options.ranks), options.quick)
    if found is None:
        return 1
    _finish(found, path, options)
    return 0


def _correct(path: Path, options: argparse.Namespace) -> int:
    """Write the cluster of a report as the run has shown it."""
    cluster, found = corrected(Report.load(options.report), options.name or path.stem)
    words = ", ".join(f"{row.what} {row.ratio:.3g} times as long as predicted" for row in found)
    written(str(path), cluster_toml(cluster, f"Corrected by a run: {words}."))
    if options.json:
        document = {"cluster": cluster.as_dict(), "corrections": [asdict(row) for row in found]}
        options.document(json.dumps(document, indent=1) + "\n")
        return 0
    rows = [[row.what, seconds(row.predicted), seconds(row.measured), f"{row.ratio:.2f}x"] for row in found]
    output().print(table(f"corrected by {options.report}", ("", "predicted", "measured", ""), rows))
    output().print(f"written to {path}")
    return 0


def _ranks(asked: int | None) -> int:
    devices = torch.cuda.device_count()
    ranks = asked if asked is not None else devices or CPU_RANKS
    if ranks < 2:
        raise InputError(f"{ranks} rank has no link to measure: give --ranks 2 or more")
    if devices and ranks > devices:
        raise InputError(f"--ranks {ranks} is more than the {devices} GPUs of this machine: give at most as many")
    return ranks


def _local(ranks: int, quick: bool) -> Sweep | None:
    """The sweep of local ranks, with a bar; None when one of them failed, which the launcher has said."""
    found: list[Sweep] = []
    console = errors()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting ranks", total=None)

        def write(line: str) -> None:
            event = json.loads(line) if line.startswith("{") else {}
            if "sweep" in event:
                found.append(Sweep.from_json(event["sweep"]))
            elif "done" in event:
                bar.update(task, description=event["what"], completed=event["done"], total=event["of"])

        words = ["quick" if quick else "full"]
        result = launch.local_module("runtime.measure.sweep", words, ranks, LIMIT_SECONDS, write)
    return found[0] if result.failure is None and found else None


def _finish(found: Sweep, path: Path, options: argparse.Namespace) -> None:
    cluster = fit(found, options.name or path.stem)
    write_whole(path, toml(cluster, found, datetime.date.today()))
    Cluster.load(path)
    if options.json:
        document = {"cluster": cluster.as_dict(), "sweep": asdict(found)}
        options.document(json.dumps(document, indent=1) + "\n")
        return
    console = output()
    title = f"{found.device}, {found.ranks} ranks at once"
    console.print(table(title, ("", "measured", "written"), rows(cluster, found)))
    console.print(f"written to {path}")


def rows(cluster: Cluster, found: Sweep) -> list[list[str]]:
    """What was measured, and the value that the file got."""
    device, software = cluster.device, cluster.software
    products = _kind(found, "peak", "gemm")
    listed = [
        [f"products, {dtype}", _range([_flops(s) / 1e9 for s in products if s.dtype == dtype], "GFLOP/s"),
         f"{peak / 1e9:.4g} GFLOP/s"] for dtype, peak in device.flops_per_second.items()
    ]
    reached = [_flops(s) / device.flops_per_second[s.dtype] for s in _kind(found, "gemm")]
    listed += [
        ["training-sized products", _range(reached, "of the peak"), f"{device.products[0].share:.3f}"],
        ["add, copy", _range([s.size[0] / s.seconds / 1e9 for s in _kind(found, "add", "copy")], "GB/s"),
         f"{device.memory_bytes_per_second / 1e9:.4g} GB/s"],
        ["pointwise training", f"{len(_kind(found, 'pointwise'))} sizes", f"{device.memory_efficiency:.3f}"],
        ["attention", "keeps its scores" if found.keeps_scores else "keeps no scores",
         f"{cluster.attention}, {device.attention.share:.3f}"],
        ["a kernel", f"alone {seconds(_alone(found))}", _kernel(cluster)],
        ["blocks, against their parts", f"{len(_kind(found, 'block')) - 1} sizes", f"{software.efficiency:.3f}"],
        ["ranks' speed", f"{100 * found.spread:.1f} % apart", f"{device.spread:.4f}"],
        ["memory of a rank", size(found.memory_bytes), size(device.memory_bytes)],
        ["all_reduce beside products", _hidden(found.hidden_share), "hides" if software.overlap_gradients else "waits"],
        ["sends beside products", _hidden(found.hidden_sends), "hide" if software.overlap_sends else "wait"],
    ]  # fmt: skip
    fits = link_fits(found)
    links = {"node": cluster.node, "network": cluster.network}
    return listed + [_link_row(name, fits[name], link) for name, link in links.items()]


def _hidden(share: float) -> str:
    return f"{100 * share:.0f} % hidden"


def _kind(found: Sweep, *kinds: str) -> list[Sample]:
    return [s for s in found.samples if s.kind in kinds]


def _flops(sample: Sample) -> float:
    m, n, k = sample.size
    return 2.0 * m * n * k / sample.seconds


def _range(values: list[float], unit: str) -> str:
    return f"{min(values):.3g} to {max(values):.3g} {unit}"


def _alone(found: Sweep) -> float:
    return statistics.median(s.seconds / s.size[0] for s in _kind(found, "launch"))


def _kernel(cluster: Cluster) -> str:
    host = cluster.software.dispatch_seconds
    return seconds(cluster.device.launch_seconds) + (f", host {seconds(host)}" if host else "")


def _link_row(name: str, found: LinkFit | None, link: Link) -> list[str]:
    told = f"{found.samples} timings, {100 * found.error:.0f} % off" if found else "not seen: the other's"
    return [name, told, f"{seconds(link.latency_seconds)}, {link.speed / 1e9:.3g} GB/s"]


def toml(cluster: Cluster, found: Sweep, day: datetime.date) -> str:
    """The file, which ``Cluster.load`` reads back; its comments say where each figure comes from."""
    device, software, fits = cluster.device, cluster.software, link_fits(found)
    one = f"of {found.ranks} ranks at once on {found.nodes} node{'s' if found.nodes > 1 else ''}"
    lines = [
        f"# Measured by partitioner calibrate on {day.isoformat()}: {one}, {found.kind}, torch {found.torch}.",
        f"name = {json.dumps(cluster.name)}",
        f'attention = "{cluster.attention}"  # what autograd keeps of scaled_dot_product_attention here',
        "",
        "[device]",
        f"name = {json.dumps(device.name)}",
        f"memory_bytes = {_number(device.memory_bytes)}" + ("  # available, a rank" if found.kind == "cpu" else ""),
        f"memory_bytes_per_second = {_number(device.memory_bytes_per_second)}  # best add or copy beyond the caches",
        f"launch_seconds = {_number(device.launch_seconds)}",
        f"memory_efficiency = {_number(device.memory_efficiency)}  # norm, gelu and sum, forward and backward",
        f"multiprocessors = {device.multiprocessors}",
        f"spread = {_number(device.spread)}",
        *([f"allocator_share = {device.allocator_share}  # not measured"] if device.allocator_share < 1 else []),
        "[device.flops_per_second]  # best product",
        *(f"{dtype} = {_number(peak)}" for dtype, peak in device.flops_per_second.items()),
        "",
        "[[device.products]]",
        f"types = {json.dumps(list(device.flops_per_second))}",
        f"share = {_number(device.products[0].share)}  # training-sized products",
        f"memory_share = {_number(device.products[0].memory_share)}",
        f"fixed_seconds = {_number(device.products[0].fixed_seconds)}",
        "",
        "[device.attention]",
        f"share = {_number(device.attention.share)}",
        f"fixed_seconds = {_number(device.attention.fixed_seconds)}",
        *_link_lines("node", cluster.node, fits["node"], cluster.node_devices),
        *_link_lines("network", cluster.network, fits["network"], None),
        "",
        "[own]  # this project's runtime, as it was measured here",
        f"efficiency = {_number(software.efficiency)}  # a block of a transformer against the sum of its parts",
        f"overlap_gradients = {str(software.overlap_gradients).lower()}  # {_hidden(found.hidden_share)}",
        f"overlap_sends = {str(software.overlap_sends).lower()}  # {_hidden(found.hidden_sends)}",
        *([f"dispatch_seconds = {_number(software.dispatch_seconds)}"] if software.dispatch_seconds else []),
    ]
    return "\n".join(lines) + "\n"


def _link_lines(name: str, link: Link, found: LinkFit | None, devices: int | None) -> list[str]:
    told = f"fitted to {found.samples} timings, half of them within {100 * found.error:.0f} %" if found else (
        "not measured, these are the other link's figures: ranks of several nodes, or several of one, would show it"
    )  # fmt: skip
    return [
        "",
        f"[{name}]  # {told}",
        *([f"devices = {devices}"] if devices else []),
        f"bytes_per_second = {_number(link.bytes_per_second)}",
        f"efficiency = {_number(link.efficiency)}",
        f"latency_seconds = {_number(link.latency_seconds)}",
    ]


def _number(value: float) -> str:
    """Four digits, as TOML writes a float."""
    return repr(float(f"{value:.{DIGITS - 1}e}"))
