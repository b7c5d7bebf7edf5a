"""Tuning with kernels that are the reference, or wrong, and a clock that is told: gate, rivals, winner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from specs import KERNELS, specs

from cutlass_ops.building import build
from cutlass_ops.building.build import Entry, Manifest
from cutlass_ops.building.sass import Code
from cutlass_ops.printers.reference import reference
from cutlass_ops.spec.spec import Gemm, Load, Op, Store
from cutlass_ops.tuning import tune
from cutlass_ops.tuning.tune import Run, Trial

KERNEL = KERNELS["gelu.cute.sm_90a"]
GEMM = KERNEL.gemm
SIZES = (64, 32, 48)
CODE = Code(168, 0, 0, {}, 1)
ENTRY = Entry(Path("nowhere"), KERNEL, Manifest("key", KERNEL.name, 1.0, 1, "", {}, CODE))
Launch = Callable[..., None]


def _launch(a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor], stores: Sequence[torch.Tensor]) -> None:
    for store, y in zip(stores, reference(GEMM)(a, b, *loads), strict=True):
        store.copy_(y)


def _ragged(a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor], stores: Sequence[torch.Tensor]) -> None:
    """Right where the columns are whole tiles of 32, not written behind them elsewhere."""
    whole = [torch.empty_like(y) for y in stores]
    _launch(a, b, loads, whole)
    columns = stores[0].shape[1] // 32 * 32
    for store, y in zip(stores, whole, strict=True):
        store[:, :columns] = y[:, :columns]


def _biased(a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor], stores: Sequence[torch.Tensor]) -> None:
    _launch(a, b, [loads[0] * 1.1, *loads[1:]], stores)


def test_gate_passes_the_reference() -> None:
    assert tune.gate(GEMM, SIZES, _launch) is None


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (lambda *operands: None, "wrong by nan at 64 x 32 x 48"),
        (_ragged, "wrong by nan at 24 x 40 x 56"),
        (_biased, "at 64 x 32 x 48, over 3.9e-03"),
    ],
)
def test_gate_stops_wrong_numbers(launch: Launch, message: str) -> None:
    assert message in (tune.gate(GEMM, SIZES, launch) or "")


def _load(launch: Launch) -> SimpleNamespace:
    return SimpleNamespace(load=lambda library, kernel: launch)


def test_a_kernel_wins_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.PRINTERS, "cute", _load(_launch))  # type: ignore[arg-type]
    ran: list[object] = []

    def clock(run: Run) -> float:
        run()
        ran.append(run)
        is_kernel = isinstance(run, partial) and run.func is _launch
        return 1e-4 if is_kernel else 2e-4

    found = tune.tune(GEMM, SIZES, [ENTRY], clock, compiled=False)
    assert (found.key, found.kernel, found.seconds, found.torch_seconds) == ("key", KERNEL.name, 1e-4, 2e-4)
    assert (found.digest, found.m, found.n, found.k, found.rival) == (GEMM.digest, *SIZES, "eager")
    assert len(ran) == 2


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([], "no kernel is built"),
        ([Trial(ENTRY, 1.99e-4)], f"torch (eager) 200.0 us, {KERNEL.name} 199.0 us"),
        ([Trial(ENTRY, None, word) for word in ("a: wrong", "b: wrong", "a: wrong")], "a: wrong; b: wrong"),
    ],
)
def test_torch_wins_with_a_reason(trials: list[Trial], reason: str) -> None:
    found = tune.winner(GEMM, SIZES, trials, "eager", 2e-4)
    assert (found.key, found.kernel, found.seconds, found.reason) == ("", "", 2e-4, reason)


@pytest.mark.parametrize("trouble", [OSError("gone"), RuntimeError("no resources"), ValueError("a shape")])
def test_trouble_takes_a_kernel_out(trouble: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*operands: object) -> None:
        raise trouble

    monkeypatch.setitem(build.PRINTERS, "cute", _load(launch))  # type: ignore[arg-type]
    trial = tune.try_kernel(GEMM, SIZES, ENTRY, lambda run: 1.0)
    assert trial.seconds is None
    assert str(trouble) in trial.reason


def _activated(op: str, stores: tuple[str, ...] = ("v1",)) -> Gemm:
    return Gemm(
        "linear",
        "float32",
        loads=(Load("bias", "n", "float32"),),
        ops=(Op("v0", "add", ("acc", "bias")), Op("v1", op, ("v0",))),
        stores=tuple(Store(value, "float32") for value in stores),
    )


def test_rivals_compute_the_same() -> None:
    """Those of torch's ways that fit, each run once; torch's fused activation is one where nothing else is stored."""
    for gemm, names in (
        (_activated("relu"), {"eager", "_addmm_activation"}),
        (_activated("gelu_tanh"), {"eager", "_addmm_activation"}),
        (_activated("gelu"), {"eager"}),
        (_activated("relu", ("v1", "v0")), {"eager"}),
        (specs()["gate"], {"eager"}),
    ):
        results: list[torch.Tensor] = []

        def clock(run: Run, results: list[torch.Tensor] = results) -> float:
            torch.manual_seed(0)
            made = run()
            results.append(made[0] if isinstance(made, tuple) else made)  # type: ignore[arg-type]
            return 1.0

        assert set(tune.time_rivals(gemm, SIZES, clock)) == names
        for other in results[1:]:
            assert tune.relative_error(other, results[0]) < 1e-3


@pytest.mark.parametrize("name", ["plain", "gelu", "gate", "wgrad", "scaled"])
def test_operands_have_the_spec_s_shapes(name: str) -> None:
    gemm = specs()[name]
    a, b, loads = tune.operands(gemm, SIZES)
    stores = reference(gemm)(a, b, *loads)
    assert all(y.shape == SIZES[:2] for y in stores)
    assert all(float(y.double().norm()) > 0 for y in (a, b, *loads, *stores))
