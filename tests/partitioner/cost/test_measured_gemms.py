"""A cluster that names a kernel database: winners stand in the plan and in the program, their times in the price."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import models
import pytest

from cutlass_ops.linear import layer
from cutlass_ops.tuning.database import Database, Measured
from partitioner import Cluster, Graph, Plan, lower, search, trace
from partitioner.emit.write_fusions import FUSED
from partitioner.errors import InputError
from partitioner.plan.derived_rows import ProductRow

PINS: dict[str, str | int] = {"tp": 1, "pp": 1, "dp": 8, "micro_batch": 2}


@functools.cache
def graph_of(name: str) -> Graph:
    return trace(*models.make(name, 2))


def plan_of(name: str, cluster: Cluster) -> Plan:
    return search(graph_of(name), cluster, 16, PINS)


def rows_of(plan: Plan) -> list[ProductRow]:
    return [row for block in plan.blocks for row in block.products]


def measured(rows: list[ProductRow], seconds: float, key: str = "k") -> list[Measured]:
    """Of every forward, dgrad and wgrad."""
    found: dict[tuple[str, int, int, int], Measured] = {}
    for row in rows:
        op = layer.layer(row.line, row.inner, row.transposed, row.dtype, ("", "", ""))
        m, n, k = row.m, row.n, row.k
        sizes = ((m, n, k), (m, k, n), (k, n, m) if row.transposed else (n, k, m))
        for gemm, size in zip((op.forward, layer.dgrad(op), layer.wgrad(op)), sizes, strict=True):
            reason = "" if key else "torch is faster"
            found[(gemm.digest, *size)] = Measured(gemm.digest, gemm.a, *size, key, "a", seconds, 1.0, "eager", reason)
    return list(found.values())


def cluster_with(folder: Path, rows: list[Measured]) -> Cluster:
    """The A100's file beside a database of it."""
    Database("A100", "1", {}, tuple(rows)).save(folder / "kernels.json")
    text = files("partitioner").joinpath("clusters", "dgx-a100.toml").read_text()
    (folder / "measured.toml").write_text('kernels = "kernels.json"\n' + text)
    return Cluster.load(folder / "measured.toml")


@pytest.mark.parametrize("name", ["gpt", "llama", "phi3", "gpt2"])
def test_times_replace_the_model_s(name: str, tmp_path: Path) -> None:
    """All GEMMs at a second each: a step is the sum of them, fused weights in their parts, and little else."""
    plain = plan_of(name, Cluster.load("dgx-a100"))
    assert all(row.kernels == ("", "", "") and row.reason == "no kernel measured" for row in rows_of(plain))
    plan = plan_of(name, cluster_with(tmp_path, measured(rows_of(plain), 1.0)))
    assert all(row.kernels == ("k", "k", "k") and not row.reason for row in rows_of(plan))
    counts = sum(len(block.products) * len(block.units) for block in plan.blocks)
    assert plan.cost.compute_seconds / 1.018 == pytest.approx(3 * counts * plan.parallelism.micro_batches, rel=0.05)
    assert plan.cost.compute_seconds > 10 * plain.cost.compute_seconds


def test_the_chain_costs_nothing_beside_its_gemm(tmp_path: Path) -> None:
    plain = plan_of("gpt", Cluster.load("dgx-a100"))
    plan = plan_of("gpt", cluster_with(tmp_path, measured(rows_of(plain), 1e-9)))
    ops = {op.module: op for block in plan.blocks for op in block.ops if op.op.startswith("aten.gelu")}
    assert plan.cost.compute_seconds < plain.cost.compute_seconds
    assert ops
    row = next(block for block in plan.blocks if block.is_block)
    other = next(block for block in plain.blocks if block.is_block)
    assert row.forward_seconds < other.forward_seconds


def test_winners_stand_in_the_program(tmp_path: Path) -> None:
    rows = rows_of(plan_of("llama", Cluster.load("dgx-a100")))
    plan = plan_of("llama", cluster_with(tmp_path, measured(rows, 1e-6)))
    nodes = [n for call in lower(graph_of("llama"), plan).stages[0].calls for n in call.module.graph.nodes]
    fused = [n for n in nodes if n.target == FUSED]
    assert fused
    assert all(n.args[-1] == ["k", "k", "k"] for n in fused)


def test_torch_as_winner_is_said_and_left_alone(tmp_path: Path) -> None:
    rows = rows_of(plan_of("llama", Cluster.load("dgx-a100")))
    plan = plan_of("llama", cluster_with(tmp_path, measured(rows, 1e-6, key="")))
    assert {row.reason for row in rows_of(plan)} == {
        "forward torch is faster; dgrad torch is faster; wgrad torch is faster"
    }
    nodes = [n for call in lower(graph_of("llama"), plan).stages[0].calls for n in call.module.graph.nodes]
    assert not [n for n in nodes if n.target == FUSED]


def test_what_was_not_measured_keeps_its_price(tmp_path: Path) -> None:
    plain = plan_of("gpt", Cluster.load("dgx-a100"))
    forward = [replace(m, seconds=1.0) for m in measured(rows_of(plain)[:1], 1.0)][:1]
    plan = plan_of("gpt", cluster_with(tmp_path, forward))
    assert plan.cost.step_seconds == plain.cost.step_seconds
    assert rows_of(plan)[0].kernels == ("k", "", "")
    assert rows_of(plan)[0].reason == "dgrad not measured; wgrad not measured"


def test_a_database_that_is_none(tmp_path: Path) -> None:
    cluster = cluster_with(tmp_path, [])
    (tmp_path / "kernels.json").write_text("{")
    with pytest.raises(InputError, match="the kernels of dgx-a100: .*kernels.json is no kernel database"):
        plan_of("gpt", cluster)
    with pytest.raises(InputError, match="the kernels of dgx-a100: .*No such file"):
        plan_of("gpt", replace(cluster, kernels=str(tmp_path / "absent.json")))


def test_kernels_are_a_file_s_name(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(
        "kernels = 3\n" + files("partitioner").joinpath("clusters", "dgx-a100.toml").read_text()
    )
    with pytest.raises(InputError, match="kernels must be the name of a file, it is 3"):
        Cluster.load(tmp_path / "wrong.toml")
