"""Planted clusters come back from the timings that they price, and the command writes files that load."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partitioner import Cluster
from partitioner.cost.op_seconds import work_seconds
from partitioner.errors import InputError
from partitioner.hardware.device import Attention, Device, one_row
from partitioner.hardware.link import Link
from partitioner.kernel_seconds.collective import collective_seconds
from partitioner.kernel_seconds.product import gemm_seconds
from partitioner.sharding.products import Gemm
from partitioner.software import Software
from runtime.measure import device_probes
from runtime.measure.sweep import Sample, Sweep
from runtime.ranks.launch import Result, local
from tools.calibrate import command
from tools.calibrate.fit_timings import (
    POINTWISE_KERNELS,
    POINTWISE_PASSES,
    block_work,
    coefficients,
    fit,
    fit_link,
    priced_work,
)
from tools.main import EXIT_INPUT, main

PEAKS = {"float32": 2e11, "bfloat16": 4e11}
DEVICE = Device(
    "planted", 8e9, 2e10, 2e-5, 0.4, 1, 0.03, PEAKS, one_row(PEAKS, 0.7, 0.4, 2e-5), Attention(0.3, fixed_seconds=2e-5)
)
PLANTED = Cluster(
    "planted", "flash", DEVICE, Link(1e9, 0.8, 2e-4), 4, Link(2e8, 0.5, 1e-3), 1, Software(efficiency=0.9)
)
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def timings(ranks: int, nodes: int) -> Iterator[Sample]:
    """What collectives and sends take on the planted links; groups over nodes have one rank on each."""
    route = PLANTED.route(ranks, inside=ranks // nodes)
    link = PLANTED.node if nodes == 1 else PLANTED.network
    for size in (16_384, 1_048_576, 8_388_608):
        for kind in KINDS:
            yield Sample(kind, "float32", (size,), ranks, nodes, collective_seconds(kind, size, route))
        yield Sample("send", "float32", (size,), ranks, nodes, link.latency_seconds + size / link.speed)


def planted(nodes: int = 1, keeps_scores: bool = False) -> Sweep:
    """What a sweep of the planted cluster would find."""
    whole = replace(PLANTED, software=Software())
    samples = [s for ranks in (2, 4) for s in timings(ranks, 1)]
    samples += [s for n in range(2, nodes + 1) for s in timings(n, n)]
    for dtype, peak in PEAKS.items():
        samples.append(Sample("peak", dtype, (64, 64, 64), 1, 1, 2.0 * 64**3 / peak))
        for m, n, k in ((128, 384, 128), (512, 256, 1024)):
            seconds = gemm_seconds(Gemm(m, n, k), DEVICE, dtype, getattr(torch, dtype).itemsize)
            samples.append(Sample("gemm", dtype, (m, n, k), 1, 1, seconds))
    streamed = 1e8 / DEVICE.memory_bytes_per_second
    samples += [Sample(kind, "float32", (10**8,), 1, 1, streamed) for kind in ("add", "copy")]
    samples.append(Sample("launch", "float32", (100,), 1, 1, 100 * DEVICE.launch_seconds))
    for tokens, width in ((512, 128), (1024, 256)):
        moved = POINTWISE_PASSES * 4 * tokens * width
        seconds = moved / DEVICE.streaming + POINTWISE_KERNELS * DEVICE.launch_seconds
        samples.append(Sample("pointwise", "float32", (tokens, width), 1, 1, seconds))
    for size in ((4, 8, 128, 32), (4, 8, 256, 32)):
        works = [w for w in block_work((size[0], size[2], size[1], size[1] * size[3]), whole) if w.attended]
        samples.append(Sample("attention", "float32", size, 1, 1, sum(work_seconds(w, whole) for w in works)))
    for size in (device_probes.TINY_BLOCK, (2, 128, 8, 128), (8, 128, 8, 128)):
        share = 1.0 if size == device_probes.TINY_BLOCK else PLANTED.software.efficiency
        seconds = sum(work_seconds(w, whole) for w in block_work(size, whole)) / share
        samples.append(Sample("block", "float32", size, 1, 1, seconds))
    return Sweep(
        4 * nodes, nodes, DEVICE.name, "cpu", DEVICE.memory_bytes, 1, keeps_scores, 0.8, 0.2, DEVICE.spread,
        "2.13", tuple(samples),
    )  # fmt: skip


def test_planted_links_come_back() -> None:
    for nodes, link in ((1, PLANTED.node), (2, PLANTED.network)):
        rows = list(timings(2, nodes)) + (list(timings(4, 1)) if nodes == 1 else list(timings(4, 4)))
        found = fit_link(rows)
        assert found is not None
        assert found.latency_seconds == pytest.approx(link.latency_seconds, rel=1e-6)
        assert found.speed == pytest.approx(link.speed, rel=1e-6)
        assert found.error < 1e-6
    assert fit_link([]) is None


def test_a_link_is_fitted_through_noise_that_doubles_and_halves() -> None:
    exact = [*timings(2, 1), *timings(4, 1)]
    rows = [replace(s, seconds=s.seconds * (2.0 if n % 2 else 0.5)) for n, s in enumerate(exact)]
    found = fit_link(rows)
    assert found is not None
    assert found.latency_seconds == pytest.approx(PLANTED.node.latency_seconds, rel=0.5)
    assert found.speed == pytest.approx(PLANTED.node.speed, rel=0.5)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_link_whose_speed_noise_hides_is_refused(noise: float) -> None:
    """Messages that take the same whatever their size, give or take a tenth, and some that take less."""
    exact = [*timings(2, 1), *timings(4, 1)]
    flat = [s.seconds * 0 + coefficients(s)[0] * (1 + noise * (-1) ** n) for n, s in enumerate(exact)]
    with pytest.raises(InputError, match="calibrate on a quiet machine"):
        fit_link([replace(s, seconds=seconds) for s, seconds in zip(exact, flat, strict=True)])
    falling = sorted(exact, key=lambda s: s.size)
    with pytest.raises(InputError, match="calibrate on a quiet machine"):
        fit_link([replace(s, seconds=coefficients(s)[0] / (n + 1)) for n, s in enumerate(falling)])


def test_a_planted_cluster_comes_back() -> None:
    found = fit(planted(nodes=2), "planted")
    device = found.device
    assert (found.node_devices, found.attention) == (4, "flash")
    assert (found.software.overlap_gradients, found.software.overlap_sends) == (True, False)
    assert device.flops_per_second == pytest.approx(PEAKS)
    assert device.products[0].share == pytest.approx(DEVICE.products[0].share)
    assert device.memory_bytes_per_second == pytest.approx(DEVICE.memory_bytes_per_second)
    assert device.memory_efficiency == pytest.approx(DEVICE.memory_efficiency)
    assert device.attention.share == pytest.approx(DEVICE.attention.share, rel=0.01)
    assert device.launch_seconds == pytest.approx(DEVICE.launch_seconds, rel=0.25)  # a tiny block is more
    assert found.software.efficiency == pytest.approx(PLANTED.software.efficiency, rel=0.05)
    assert (device.memory_bytes, device.spread, device.multiprocessors) == (8e9, 0.03, 1)
    for link, wanted in ((found.node, PLANTED.node), (found.network, PLANTED.network)):
        assert link.speed == pytest.approx(wanted.speed)
        assert link.latency_seconds == pytest.approx(wanted.latency_seconds)
        assert link.efficiency <= 1


def test_a_gpus_allocator_fills_no_more_than_the_presets_share() -> None:
    gpu = replace(planted(), kind="cuda")
    assert fit(gpu, "planted").device.allocator_share == Cluster.load("dgx-h100").device.allocator_share
    assert "allocator_share = 0.9" in command.toml(fit(gpu, "planted"), gpu, datetime.date(2026, 1, 2))
    assert fit(planted(), "planted").device.allocator_share == 1.0


def test_kept_scores_are_unfused_attention() -> None:
    assert fit(planted(keeps_scores=True), "planted").attention == "math"


def test_one_node_stands_for_both_links_and_says_so(tmp_path: Path) -> None:
    sweep = planted()
    found = fit(sweep, "planted")
    assert found.network == found.node
    text = command.toml(found, sweep, datetime.date(2026, 1, 2))
    assert "2026-01-02" in text.splitlines()[0]
    assert "torch 2.13" in text.splitlines()[0]
    assert "[network]  # not measured" in text
    assert "overlap_sends = false  # 20 % hidden" in text
    path = tmp_path / "planted.toml"
    path.write_text(text)
    loaded = Cluster.load(path)
    assert loaded.device.products[0].share == pytest.approx(found.device.products[0].share, rel=1e-3)
    assert loaded.node.speed == pytest.approx(found.node.speed, rel=1e-3)
    assert loaded.software.efficiency == pytest.approx(found.software.efficiency, rel=1e-3)
    two = planted(nodes=2)
    assert "not measured" not in command.toml(fit(two, "planted"), two, datetime.date(2026, 1, 2))


class Pointwise(nn.Module):
    """A linear layer, then with ``is_long`` what the pointwise probe times."""

    def __init__(self, is_long: bool) -> None:
        super().__init__()
        self.linear, self.norm, self.is_long = nn.Linear(64, 64), nn.LayerNorm(64), is_long

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        y = y + F.gelu(self.norm(y)) if self.is_long else y
        return F.cross_entropy(y.flatten(0, 1), labels.flatten())


def test_pointwise_passes_are_those_that_work_counts() -> None:
    batch = {"x": torch.randn(4, 256, 64), "labels": torch.zeros(4, 256, dtype=torch.int64)}
    long, short = (priced_work(Pointwise(is_long), batch, PLANTED) for is_long in (True, False))
    streamed = sum(w.streamed_bytes for w in long) - sum(w.streamed_bytes for w in short)
    assert streamed == pytest.approx(POINTWISE_PASSES * batch["x"].nbytes, rel=0.03)  # the norm's weights
    assert sum(w.kernels for w in long) - sum(w.kernels for w in short) == POINTWISE_KERNELS


def test_cpu_attention_keeps_what_the_priced_kind_says() -> None:
    """Without dropout torch's CPU kernel keeps q, k, v, its result and a row statistic."""
    kept: list[int] = []
    x = torch.randn(2, 4, 64, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        F.scaled_dot_product_attention(x, x, x, is_causal=True)
    assert sum(kept) == 4 * x.numel() + 2 * 4 * 64
    assert not device_probes.keeps_scores(torch.device("cpu"))


def test_a_quick_calibration_is_in_physical_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "here.toml"
    words = ["calibrate", "-o", str(path), "--ranks", "2", "--quick", "--json"]
    status = main(words)
    if status == EXIT_INPUT:  # other work on this machine may hide a link's speed
        status = main(words)
    assert status == 0
    document = json.loads(capsys.readouterr().out)
    cluster = Cluster.load(path)
    device = cluster.device
    assert document["cluster"]["name"] == cluster.name == "here"
    assert cluster.node_devices == document["sweep"]["ranks"] == 2
    assert set(device.flops_per_second) == {"float32", "float64", "bfloat16"}
    assert all(1e8 < peak < 1e13 for peak in device.flops_per_second.values())
    assert 1e8 < device.memory_bytes_per_second < 1e13
    assert 1e-7 < device.launch_seconds < 1e-2
    assert 1e7 < device.memory_bytes < 1e14
    assert 1e6 < cluster.node.speed < 1e12
    assert 0 <= cluster.node.latency_seconds < 0.1
    assert {s["ranks"] for s in document["sweep"]["samples"]} == {1, 2}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "here.json"], "here.json is no cluster file"),
        (["-o", "nowhere/here.toml"], "the folder nowhere is not there"),
        (["-o", "here.toml", "--ranks", "1"], "1 rank has no link to measure"),
        (["-o", "here.toml", "--ranks", "0"], "0 rank has no link to measure"),
        (["-o", "here.toml", "--ranks", "two"], "invalid int value"),
        ([], "-o/--output"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *words]) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == 1


def test_a_rank_that_fails_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> Result:
        return local([sys.executable, "-c", "raise SystemExit(3)"], 2, 20.0)

    monkeypatch.setattr(command.launch, "local_module", broken)
    path = tmp_path / "here.toml"
    assert main(["calibrate", "-o", str(path), "--ranks", "2"]) == 1
    assert not path.exists()
