"""What is tried for a GEMM: a fixed list, or the heuristics' tiles; what spills or does not compile is passed over."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from specs import specs

from cutlass_ops.building import build
from cutlass_ops.building.build import BuildError, Entry, Manifest
from cutlass_ops.building.sass import Code
from cutlass_ops.spec.kernel import Kernel, Tiling
from cutlass_ops.tuning import candidates, heuristics

GEMM = specs()["gelu"]


def _entry(kernel: Kernel, spilled: int) -> Entry:
    code = Code(168, 0, spilled, {"HGMMA": 8}, 1000)
    return Entry(Path("nowhere"), kernel, Manifest("key", kernel.name, 1.0, 1, "", {}, code))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """The widest tile spills, the next does not compile."""
    found: list[Kernel] = []

    def builder(kernel: Kernel, where: Path) -> Entry:
        found.append(kernel)
        if len(found) == 2:
            raise BuildError("nvcc ended with 1")
        return _entry(kernel, spilled=4 if len(found) == 1 else 0)

    monkeypatch.setattr(build, "build", builder)
    return found


def test_the_first_that_compiles_without_spills(asked: list[Kernel], tmp_path: Path) -> None:
    found = candidates.built(GEMM, "sm_90a", tmp_path)
    assert [entry.kernel for entry in found.entries] == asked[2:3]
    assert len(asked) == 3
    assert found.reasons == (f"{asked[0].name}: its epilogue spills registers", "nvcc ended with 1")


def test_every_one_for_tuning(asked: list[Kernel], tmp_path: Path) -> None:
    found = candidates.built(GEMM, "sm_90a", tmp_path, every=True)
    assert len(found.entries) == len(asked) - 2 >= 4


ARCHITECTURES = [("sm_80", "cpp"), ("sm_89", "cpp"), ("sm_90a", "cute"), ("sm_100a", "cute")]


@pytest.mark.parametrize(("arch", "printer"), ARCHITECTURES)
def test_printer_of_an_architecture(arch: str, printer: str) -> None:
    kernels, _ = candidates.candidates(GEMM, arch)
    assert {kernel.printer for kernel in kernels} == {printer}
    assert len(set(kernels)) == len(kernels) >= 5


def test_nothing_to_try_says_why() -> None:
    assert candidates.candidates(specs("float32")["plain"], "sm_90a") == (
        [],
        ["tensor cores of the CuTe printer take bfloat16, float16, float8_e4m3fn, not float32"],
    )


def test_heuristics_come_first_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = [Tiling(256, 128, cluster_n=2), Tiling(128, 128, cluster_m=2)]
    monkeypatch.setattr(heuristics, "ranked", lambda gemm, arch, sizes: ranked)
    kernels, _ = candidates.candidates(GEMM, "sm_90a", sizes=(4096, 4096, 1024))
    assert [k.tiling for k in kernels] == [*ranked, Tiling(128, 128, cluster_m=2, pingpong=True)]


def test_without_the_package_there_is_no_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert heuristics.ranked(GEMM, "sm_90a", (4096, 4096, 1024)) == []


@pytest.mark.kernels
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_really_ranked(arch: str) -> None:
    found = heuristics.ranked(GEMM, arch, (4096, 11008, 4096))
    assert 3 <= len(found) <= heuristics.COUNT
    assert all(tile.m in (64, 128, 256) and tile.n in (64, 128, 256) for tile in found)
