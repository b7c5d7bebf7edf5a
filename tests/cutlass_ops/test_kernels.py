"""Kernels really compiled: their library loads, says the spec's signature, and its code is tensor cores without spills.

Needs the extra ``cutlass`` and nvcc; no GPU. ``make kernels`` runs it, ``make test`` does not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from specs import KERNELS, operands

from cutlass_ops.building import build
from cutlass_ops.building.build import Entry
from cutlass_ops.printers import cpp, cute
from cutlass_ops.spec.kernel import Kernel

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(900)]
INSTRUCTION = {"sm_80": "HMMA.16816.F32.BF16", "sm_90a": "HGMMA.64x"}


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.mark.parametrize("name", KERNELS)
def test_builds(name: str, where: Path) -> None:
    entry = build.build(KERNELS[name], where)
    code = entry.manifest.code
    assert code.local_loads == code.stack_bytes == 0
    assert 0 < code.registers <= 255
    assert sum(code.tensor_core.values()) >= 4
    assert all(row.startswith(INSTRUCTION[entry.kernel.arch]) for row in code.tensor_core), code.tensor_core
    assert entry.manifest.bytes < 2**20
    CHECKS[entry.kernel.printer](entry)


def _says_signature(entry: Entry) -> None:
    """The library itself names its operands: on the CPU it refuses the first one for its device, and nothing before."""
    import tvm_ffi

    gemm = entry.kernel.gemm
    function = tvm_ffi.load_module(str(entry.library))["func"]
    with pytest.raises(TypeError) as refused:
        function()
    text = str(refused.value)
    numbers = sum(not load.over for load in gemm.loads)
    offsets = gemm.kind == "grouped"
    assert text.count("Tensor([") == 2 + offsets + len(gemm.loads) - numbers + len(gemm.stores)
    assert text.count("DataPointer") == numbers
    cute.load(entry.library, entry.kernel)


def _is_of_its_spec(entry: Entry) -> None:
    cpp.load(entry.library, entry.kernel)
    other: Kernel = next(k for k in KERNELS.values() if k.gemm != entry.kernel.gemm)
    with pytest.raises(RuntimeError, match="computes another spec"):
        cpp.load(entry.library, other)


CHECKS = {"cute": _says_signature, "cpp": _is_of_its_spec}


def test_wrong_operands_are_refused(where: Path) -> None:
    """By the library, before anything is launched."""
    entry = build.build(KERNELS["plain.cute.sm_90a"], where)
    launch = cute.load(entry.library, entry.kernel)
    a, b = operands(entry.kernel.gemm)
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        launch(a.float(), b, [], [torch.empty(8, 24)])
