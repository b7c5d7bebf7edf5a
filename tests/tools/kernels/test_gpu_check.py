"""``gpu_check`` without a GPU: what it refuses, its order, its block against plain torch, the page that it writes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cutlass_ops.building import build
from cutlass_ops.building.build import Entry, Manifest
from cutlass_ops.building.sass import Code
from cutlass_ops.printers.reference import reference
from cutlass_ops.spec.kernel import Kernel, Tiling
from cutlass_ops.spec.spec import Gemm, Op, Store
from cutlass_ops.tuning import tune
from partitioner import Cluster, search, trace
from runtime.mesh.groups import Groups
from tools.kernels import gpu_blocks, gpu_check, gpu_report, gpu_table
from tools.kernels.gpu_table import GemmRow
from tools.models.plain_decoder import Block, Dimensions, decoder

PLAIN = Gemm("linear", "bfloat16", stores=(Store("acc", "bfloat16"),))
RELU = Gemm("linear", "bfloat16", ops=(Op("v0", "relu", ("acc",)),), stores=(Store("v0", "bfloat16"),))
ROWS = [GemmRow("a block's out", PLAIN, (64, 32, 16)), GemmRow("a block's up", RELU, (64, 32, 16))]


def _entry(gemm: Gemm, key: str) -> Entry:
    kernel = Kernel(gemm, "cute", "sm_90a", Tiling(128, 128))
    return Entry(Path("nowhere"), kernel, Manifest(key, kernel.name, 1.0, 1, "", {}, Code(168, 0, 0, {}, 1)))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """One of each GEMM; that of the key "wrong" forgets half of its rows."""

    def load(library: Path, kernel: Kernel) -> object:
        def launch(a: torch.Tensor, b: torch.Tensor, loads: list[torch.Tensor], stores: list[torch.Tensor]) -> None:
            made = reference(kernel.gemm)(a, b, *loads)
            rows = len(stores[0]) // (1 if kernel.tiling.stages == 3 else 2)
            for store, y in zip(stores, made, strict=True):
                store[:rows] = y[:rows]

        return launch

    monkeypatch.setitem(build.PRINTERS, "cute", SimpleNamespace(load=load))  # type: ignore[arg-type]
    wrong = _entry(RELU, "wrong")
    wrong = replace(wrong, kernel=replace(wrong.kernel, tiling=Tiling(64, 64, stages=4)))
    return [_entry(PLAIN, "plain"), _entry(RELU, "relu"), wrong]


def _clock(run: object) -> float:
    return 1e-4 if "launch" in str(run) else 2e-4


def test_numbers_against_float64(kernels: list[Entry]) -> None:
    rows = [gpu_check.numerics(entry) for entry in kernels]
    assert [row["right"] for row in rows] == [True, True, False]
    assert len(rows[0]["errors"]) == len(gpu_check.ODD)
    assert all(0 < error <= rows[0]["bound"] for error in rows[0]["errors"].values())


def test_fused_products_come_first_and_what_time_does_not_allow_is_said(
    kernels: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = gpu_check.Report({"device": "a GPU", "driver": "1", "cuda": "13.0"})
    monkeypatch.setattr(tune, "time_compiled", lambda gemm, sizes, clock: 3e-4)
    gpu_check.measure(report, ROWS, kernels[:2], _clock, time.monotonic() + 1e4)
    assert [timed.row.name for timed in report.table] == ["a block's up", "a block's out"]
    assert [sorted(timed.rivals) for timed in report.table] == [["eager", "torch.compile"], ["eager"]]
    assert [timed.chosen.key for timed in report.table] == ["relu", "plain"]
    late = gpu_check.Report({})
    gpu_check.measure(late, ROWS, kernels[:2], lambda run: 1e-4, time.monotonic())
    assert late.left_out == ["a block's up: no time left", "a block's out: no time left"]


def test_the_page(kernels: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    report = gpu_check.Report({"device": "a GPU", "driver": "1"}, left_out=["a step: no time left"])
    report.numerics = [gpu_check.numerics(entry) for entry in kernels]
    monkeypatch.setattr(tune, "time_compiled", lambda gemm, sizes, clock: 1.5e-4)
    gpu_check.measure(report, ROWS, kernels[:2], _clock, time.monotonic() + 1e4)
    times = {"eager": 3e-3, "torch.compile": 2.2e-3, "ours": 2e-3}
    report.blocks = [{"name": "a block", "seconds": times, "dispatched": {}, "ours": 0, "kernels": {}}]
    text = gpu_report.markdown(json.loads(json.dumps(report.plain())))
    for line in (
        "device a GPU; driver 1",
        "3 kernels at odd sizes, 2 right",
        "* torch.compile over ours, fused: 1.500x, geometric mean of 1",
        "* eager over ours, fused: 2.000x, geometric mean of 1",
        "* cuBLAS over ours, nothing fused: 2.000x, geometric mean of 1",
        "* kernels chosen for 2 of 2, the least 1.500x torch's fastest",
        "| a block's up | 64 x 32 x 16 | relu | 200.0 | 150.0 | 100.0 | 0 | cute sm_90a 128x128x64 |",
        "| a block | 3.00 | 2.20 | 2.00 | 1.100x | 0 | no product has a kernel |",
        "* a step: no time left",
    ):
        assert line in text


def test_nothing_measured_is_said() -> None:
    empty: dict[str, Any] = {"machine": {}, "numerics": [], "table": [], "blocks": [], "left_out": []}
    text = gpu_report.markdown(empty)
    assert "torch.compile over ours, fused: not measured" in text
    assert "0 kernels at odd sizes, 0 right" in text


def test_refuses_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "partitioner: gpu_check needs a GPU, and torch sees none here\n"


def test_refuses_without_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_check.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no table.json: make it with python -m tools.kernels.gpu_table" in capsys.readouterr().err


def test_the_table_is_what_programs_run(tmp_path: Path) -> None:
    """Of two models: every kind of fused product, all in bfloat16, through a file and back."""
    found = [row for model in (("GPT-3 1.3B", 1, 1), ("Llama-3 8B", 2, 1)) for row in gpu_table.rows(*model)]
    ops = {op.op for row in found for op in row.gemm.ops}
    assert {"gelu", "gelu_backward", "silu", "silu_backward", "mul", "add"} <= ops
    assert {row.gemm.dtype for row in found} == {"bfloat16"}
    assert {row.sizes[0] for row in found if row.name.endswith("forward")} == {gpu_table.SEQ}
    gpu_table.save(found, tmp_path / "table.json")
    assert gpu_table.load(tmp_path / "table.json") == found


@pytest.mark.parametrize("gated", [False, True])
def test_our_block_is_the_block(gated: bool) -> None:
    """The lowered block on the plain block's parameters gives the plain block's numbers, where it reads no table."""
    size = Dimensions(2, 32, 4, 2 if gated else 4, 64, gated, 128, False, 16, False)
    block = Block(size).double()
    x = torch.randn(2, size.seq, size.hidden, dtype=torch.float64, requires_grad=True)
    module, batch = decoder(size, torch.float64, 2)
    plan = search(trace(module, batch), Cluster.load("local-cpu", devices=1), 2, {"micro_batch": 2})
    groups, run = gpu_blocks._ours(size, 2, plan, block, x)
    assert isinstance(groups, Groups)
    y = run()
    assert y.shape == x.shape
    if not gated:
        torch.testing.assert_close(y, block(x, None))
    grads = torch.autograd.grad(y.sum(), [x, *block.parameters()])
    assert all(grad.norm() > 0 for grad in grads)
