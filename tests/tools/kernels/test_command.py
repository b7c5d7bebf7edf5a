"""``partitioner kernels``: what a plan needs, without compilers; kernels chosen in a plan leave its numbers alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cutlass_ops.building import build
from cutlass_ops.building.build import Entry, Manifest
from cutlass_ops.building.sass import Code
from cutlass_ops.spec.kernel import Kernel
from cutlass_ops.tuning import database, heuristics, tune
from partitioner import Plan
from tools.kernels.command import needs
from tools.main import main

ROOT = Path(__file__).parents[3]
GPT = f"{ROOT / 'examples' / 'gpt.py'}:model"
SIZES = ["vocab=64", "hidden=32", "heads=4", "seq=16", "layers=2"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    pins = ["--pin", "tp=2", "--pin", "pp=1", "--pin", "dp=1", "--devices", "2"]
    place = ["--cluster", "local-cpu", "--global-batch", "4", *pins]
    assert main(["plan", GPT, "--set", *SIZES, *place, "-o", str(path)]) == 0
    return path


def _entry(kernel: Kernel, spilled: int = 0) -> Entry:
    code = Code(168, 0, spilled, {"HGMMA.64x256x16.F32.BF16": 8}, 1000)
    return Entry(Path("nowhere"), kernel, Manifest(kernel.gemm.digest[:32], kernel.name, 7.0, 700_000, "", {}, code))


Builder = Callable[[Kernel, Path], Entry]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Kernel]:
    """The kernels that were asked for; the widest tile spills where a gelu is computed."""
    asked: list[Kernel] = []

    def builder(kernel: Kernel, where: Path) -> Entry:
        asked.append(kernel)
        gelu = any(op.op == "gelu" for op in kernel.gemm.ops)
        return _entry(kernel, spilled=2 if gelu and kernel.tiling.n == 256 else 0)

    monkeypatch.setenv("CUTLASS_OPS_KERNELS", str(tmp_path / "kernels"))
    monkeypatch.setattr(build, "build", builder)
    monkeypatch.setattr(heuristics, "ranked", lambda gemm, arch, sizes: [])  # as where they are not installed
    return asked


def test_needs_are_forward_and_gradients_once(plan: Path) -> None:
    found = needs(Plan.load(plan), None)
    users = [user for need in found for user in need.users]
    assert len(users) == len(set(users)) == 3 * 5
    assert len({need.gemm.digest for need in found}) == len(found) < len(users)
    assert {need.gemm.dtype for need in found} == {"bfloat16"}
    assert any(op.op == "gelu_backward" for need in found for op in need.gemm.ops)


def test_build_prints_what_it_built(plan: Path, built: list[Kernel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "build", str(plan)]) == 0
    text = capsys.readouterr().out
    assert "the plan's products are in float32, which has no tensor cores: built in bfloat16" in text
    assert "8 HGMMA.64x256x16" in text
    assert {kernel.arch for kernel in built} == {"sm_90a"}


def test_a_tile_that_spills_is_not_taken(plan: Path, built: list[Kernel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "build", str(plan), "--json", "--dtype", "float16"]) == 0
    rows = json.loads(capsys.readouterr().out)
    gelu = next(row for row in rows if any(op["op"] == "gelu" for op in row["gemm"]["ops"]))
    assert (gelu["kernel"]["m"], gelu["kernel"]["n"]) == (128, 192)
    assert all(row["gemm"]["dtype"] == "float16" for row in rows)
    assert all(row["kernel"]["n"] == 256 for row in rows if row is not gelu)


def test_ampere_goes_to_the_cpp_printer(plan: Path, built: list[Kernel]) -> None:
    assert main(["kernels", "build", str(plan), "--arch", "sm_80"]) == 0
    assert {kernel.printer for kernel in built} == {"cpp"}


def test_what_has_no_kernel_is_said(plan: Path, built: list[Kernel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "build", str(plan), "--arch", "sm_100a", "--printer", "cpp"]) == 1
    text = capsys.readouterr().out
    assert "the C++ printer knows sm_80, sm_86, sm_89, sm_90a, not sm_100a" in " ".join(text.split())
    assert not built


def test_no_compiler(plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(kernel: Kernel, where: Path) -> Entry:
        raise FileNotFoundError("nvcc is not on the path: install the CUDA toolkit")

    monkeypatch.setattr(build, "build", missing)
    assert main(["kernels", "build", str(plan)]) == 2
    expected = "partitioner: nvcc is not on the path: install the CUDA toolkit; kernels need nvcc and pip install"
    assert capsys.readouterr().err.startswith(expected)


def test_every_tile(plan: Path, built: list[Kernel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "build", str(plan), "--every", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    by_gemm = Counter(row["digest"] for row in rows)
    assert min(by_gemm.values()) >= 5
    assert len(rows) == len(built) - 1


def test_tune_without_a_gpu(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "tune", str(plan), "-o", str(tmp_path / "kernels.json")]) == 2
    assert capsys.readouterr().err == "partitioner: kernels tune needs a GPU, and torch sees none here\n"


def test_tune_writes_a_database(
    plan: Path,
    built: list[Kernel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a clock that is told and no kernel built: torch wins everywhere, and the plan's next search says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(tune, "driver", lambda: "580.1")
    monkeypatch.setattr(tune, "accelerator", lambda: "cpu")
    monkeypatch.setattr(tune, "cuda_clock", lambda: lambda run: 1e-4)
    monkeypatch.setattr(build, "entries", lambda where: [])
    path = tmp_path / "kernels.json"
    assert main(["kernels", "tune", str(plan), "-o", str(path), "--no-compile"]) == 0
    assert "torch: no kernel is built" in " ".join(capsys.readouterr().out.split())
    kept = database.load(str(path))
    assert (kept.device, kept.driver) == ("a GPU", "580.1")
    wanted = {(need.gemm.digest, *sizes) for need in needs(Plan.load(plan), None) for sizes in need.sizes}
    assert {(row.digest, row.m, row.n, row.k) for row in kept.rows} == wanted


def test_list(
    plan: Path, built: list[Kernel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["kernels", "build", str(plan)])
    entries = [_entry(kernel) for kernel in built if kernel.tiling.n == 256]
    monkeypatch.setattr(build, "entries", lambda where: entries)
    capsys.readouterr()
    assert main(["kernels", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(entries)
    assert main(["kernels", "list", str(plan), "--arch", "sm_80", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["kernels", "list", str(plan)]) == 0
    assert "mlp.0 forward" in " ".join(capsys.readouterr().out.split())


def test_chosen_kernels_that_are_not_built_leave_the_numbers_alone(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On two ranks: the fused ops and their gradients stand in the program, torch computes them."""
    data = json.loads(plan.read_text())
    for block in data["derived"]["blocks"]:
        for product in block["products"]:
            product["kernels"] = ["absent", "absent", "absent"]
    chosen = tmp_path / "chosen.json"
    chosen.write_text(json.dumps(data))
    assert main(["verify", str(chosen)]) == 0
    assert "all equal" in capsys.readouterr().out
    assert main(["show", str(chosen)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "CUTLASS kernels chosen for 9" in text
    assert "forward absent, dgrad absent, wgrad absent" in text


def test_show_says_what_fuses_and_why_torch(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(plan)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "fuse into" in text
    assert "CUTLASS kernels chosen for none" in text
    assert "dgrad: gradient of bias, gelu torch: no kernel measured" in text


@pytest.mark.kernels
@pytest.mark.timeout(900)
def test_really_built(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUTLASS_OPS_KERNELS", str(tmp_path))
    assert main(["kernels", "build", str(plan), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(build.entries(tmp_path)) >= len(rows) > 3
    assert all(row["manifest"]["code"]["local_loads"] == 0 for row in rows)
