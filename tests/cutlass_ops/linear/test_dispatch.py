"""Every reason for which a chosen kernel does not run, and that torch then gives the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from specs import KERNELS, operands, specs

from cutlass_ops.building import build
from cutlass_ops.linear import dispatch
from cutlass_ops.linear.dispatch import Log
from cutlass_ops.printers.plain import plain
from cutlass_ops.printers.reference import reference
from cutlass_ops.spec.kernel import Kernel

KERNEL = KERNELS["gelu.cute.sm_90a"]
GEMM = KERNEL.gemm
Change = Callable[[list[torch.Tensor]], None]


def _wide(xs: list[torch.Tensor]) -> None:
    xs[1] = xs[1].float()


def _empty(xs: list[torch.Tensor]) -> None:
    xs[0] = xs[0][:0]


def _strided(xs: list[torch.Tensor]) -> None:
    xs[0] = xs[0].repeat_interleave(2, -1)[..., ::2]


def _holes(xs: list[torch.Tensor]) -> None:
    xs[0] = torch.zeros(3, 16, 16).bfloat16()[:, :8]


def _unaligned(xs: list[torch.Tensor]) -> None:
    xs[2] = torch.zeros(25).bfloat16()[1:]


def _odd(xs: list[torch.Tensor]) -> None:
    xs[0], xs[1] = torch.zeros(3, 8, 12).bfloat16(), torch.zeros(24, 12).bfloat16()


GUARDS: list[tuple[Change, str]] = [
    (_wide, "b is float32, not bfloat16"),
    (_empty, "an operand is empty"),
    (_strided, "a is not contiguous in its last dimension"),
    (_holes, "a's rows do not lie at one distance"),
    (_unaligned, "bias's address is no multiple of 16 bytes"),
    (_odd, "a's rows of 12 are no multiple of 16 bytes"),
    (lambda xs: None, "operands are on the cpu"),
]


@pytest.mark.parametrize(("change", "reason"), GUARDS)
def test_guards(change: Change, reason: str) -> None:
    xs = operands(GEMM)
    change(xs)
    assert dispatch.guard(GEMM, KERNEL, xs[0], xs[1], xs[2:]) == reason


def test_guard_of_another_spec() -> None:
    a, b, *loads = operands(specs()["gate"])
    assert dispatch.guard(specs()["gate"], KERNEL, a, b, loads) == f"{KERNEL.name} computes another spec"


def test_guard_of_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    xs = [_OnGpu(x) for x in operands(GEMM)]
    reason = dispatch.guard(GEMM, KERNEL, xs[0], xs[1], xs[2:])  # type: ignore[arg-type]
    assert reason == "the device is sm_80, the kernel sm_90a"


class _OnGpu:
    """A tensor that says it lies on a GPU."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.device = x, torch.device("cuda:0")

    def __getattr__(self, name: str) -> object:
        return getattr(self.x, name)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A kernel of the key "k" whose launch is the reference, or what is put into the list raises."""
    trouble: list[str] = []

    def load(library: Path, kernel: Kernel) -> Callable[..., None]:
        if trouble[:1] == ["load"]:
            raise OSError("no such symbol")

        def launch(
            a: torch.Tensor,
            b: torch.Tensor,
            loads: Sequence[torch.Tensor],
            stores: Sequence[torch.Tensor],
            offsets: None,
        ) -> None:
            if trouble[:1] == ["launch"]:
                raise RuntimeError("too many resources")
            for store, y in zip(stores, reference(kernel.gemm)(a, b, *loads), strict=True):
                store.copy_(y)

        return launch

    entry = build.Entry(tmp_path, KERNEL, None)  # type: ignore[arg-type]
    monkeypatch.setenv("CUTLASS_OPS_KERNELS", str(tmp_path))
    monkeypatch.setattr(build, "find", lambda key, where: entry if key == "k" else None)
    monkeypatch.setitem(build.PRINTERS, "cute", SimpleNamespace(load=load))  # type: ignore[arg-type]
    monkeypatch.setattr(dispatch, "guard", lambda *operands: None)
    dispatch.library.cache_clear()
    yield trouble
    dispatch.library.cache_clear()


def _run(key: str) -> tuple[tuple[torch.Tensor, ...], Log, list[torch.Tensor]]:
    log: Log = Counter()
    a, b, *loads = xs = operands(GEMM)
    return dispatch.run(GEMM, a, b, loads, key=key, log=log), log, xs


def test_runs_the_kernel(built: list[str]) -> None:
    stores, log, xs = _run("k")
    assert log == {"ran": 1}
    for y, expected in zip(stores, reference(GEMM)(*xs), strict=True):
        assert expected.float().norm() > 0
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("trouble", "key", "reason"),
    [
        ("", "", "torch was chosen"),
        ("", "other", "kernel other is not built in"),
        ("load", "k", "does not load: no such symbol"),
        ("launch", "k", f"{KERNEL.name} refused: too many resources"),
    ],
)
def test_torch_where_the_kernel_cannot(built: list[str], trouble: str, key: str, reason: str) -> None:
    built.append(trouble)
    stores, log, (a, b, *loads) = _run(key)
    assert len(log) == 1
    assert reason in next(iter(log))
    for y, expected in zip(stores, plain(GEMM, a, b, loads), strict=True):
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_switch_turns_kernels_off(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTLASS_OPS", "off")
    assert _run("k")[1] == {"CUTLASS_OPS=off": 1}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", specs())
def test_plain_computes_the_spec(name: str, dtype: str) -> None:
    """Like the reference, with a rounding at each op."""
    gemm = specs(dtype)[name]
    a, b, *rest = xs = operands(gemm)
    offsets = rest.pop(0) if gemm.kind == "grouped" else None
    bound = 1e-6 if dtype == "float64" else 5 * 2**-9
    for y, expected in zip(plain(gemm, a, b, rest, offsets), reference(gemm)(*xs), strict=True):
        assert y.dtype == expected.dtype
        assert expected.double().norm() > 0
        assert (y.double() - expected.double()).norm() <= bound * expected.double().norm()
