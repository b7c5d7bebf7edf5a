"""The printed kernels against golden files, and what each printer refuses."""

from __future__ import annotations

import ast
import dataclasses

import pytest
from golden import DIRECTORY, texts
from specs import KERNELS, specs

from cutlass_ops.building import build
from cutlass_ops.spec import kernel
from cutlass_ops.spec.kernel import Kernel, Tiling
from cutlass_ops.spec.spec import Load, Op, Store

TEXTS = texts()


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_golden(name: str) -> None:
    """``python tests/cutlass_ops/golden.py`` writes them anew."""
    assert TEXTS[name] == (DIRECTORY / name).read_text()


def test_no_golden_file_is_left_over() -> None:
    assert sorted(TEXTS) == sorted(path.name for path in DIRECTORY.iterdir())


@pytest.mark.parametrize("name", [name for name in KERNELS if ".cute." in name])
def test_printed_epilogue_is_python(name: str) -> None:
    tree = ast.parse(TEXTS[f"{name}.txt"])
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions] == ["epilogue"]
    read = {n.id for n in ast.walk(functions[0]) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    written = {n.id for n in ast.walk(functions[0]) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    known = {"gemm_epilogue", "activation", "RowVecLoad", "ColVecLoad", "TileLoad"}
    assert read <= written | {a.arg for a in functions[0].args.args} | known


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_json_both_ways(name: str) -> None:
    assert kernel.from_json(kernel.to_json(KERNELS[name])) == KERNELS[name]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"gemm": {}, "tiling": {}}'])
def test_kernel_refuses_other_json(text: str) -> None:
    with pytest.raises(ValueError, match="not a (kernel|GEMM)'s JSON"):
        kernel.from_json(text)


def _kernel(name: str, printer: str, arch: str, tiling: Tiling | None = None, **change: object) -> Kernel:
    return Kernel(dataclasses.replace(specs()[name], **change), printer, arch, tiling or Tiling(128, 128))  # type: ignore[arg-type]


GROUPED = (*specs()["grouped"].loads, Load("x", "m n", "bfloat16"), Load("y", "m n", "bfloat16"))
ADDED = (Op("v2", "add", ("v1", "x")), Op("v3", "add", ("v2", "y")))
SUM = (Store("v3", "bfloat16"),)
REFUSED = [
    (_kernel("gelu", "cute", "sm_80"), "the CuTe printer starts at sm_90, not sm_80"),
    (Kernel(specs("float32")["plain"], "cute", "sm_90a", Tiling(128, 128)), "not float32"),
    (
        _kernel("grouped", "cute", "sm_90a", loads=GROUPED, ops=(*specs()["grouped"].ops, *ADDED), stores=SUM),
        "at most one operand over m n",
    ),
    (
        _kernel("grouped", "cute", "sm_90a", loads=(Load("bias", "n", "bfloat16"), Load("rows", "m", "bfloat16"))),
        "loads a vector over m as float32",
    ),
    (_kernel("grouped", "cute", "sm_90a", a="k m"), "reads its rows from a stored m k"),
    (Kernel(specs("float16")["gate_backward"], "cute", "sm_90a", Tiling(100, 128)), "rows go by 64"),
    (_kernel("scaled", "cute", "sm_90a", loads=(Load("scale", "", "bfloat16"),)), "loads is a float32"),
    (_kernel("plain", "cpp", "sm_100a"), "the C\\+\\+ printer knows sm_80, sm_86, sm_89, sm_90a, not sm_100a"),
    (_kernel("grouped", "cpp", "sm_90a"), "has no grouped GEMM"),
    (_kernel("plain", "cpp", "sm_80", dtype="float8_e4m3fn"), "float8_e4m3fn has no tensor cores"),
    (_kernel("plain", "cpp", "sm_90a", dtype="float8_e4m3fn"), "float8 operands lie m k and n k"),
    (_kernel("plain", "cpp", "sm_80", stores=(Store("acc", "float64"),)), "float64 is no dtype of an epilogue"),
    (_kernel("plain", "cpp", "sm_80", Tiling(128, 128, pingpong=True)), "clusters and pingpong start at sm_90"),
    (_kernel("plain", "cpp", "sm_80", Tiling(96, 128)), "a tile of 96 x 128"),
]


@pytest.mark.parametrize(("refused", "message"), REFUSED)
def test_refusals(refused: Kernel, message: str) -> None:
    reason = build.refusal(refused)
    assert reason is not None
    with pytest.raises(build.BuildError, match=message):
        build.build(refused, DIRECTORY / "nowhere")


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_else_is_refused(name: str) -> None:
    assert build.refusal(KERNELS[name]) is None
