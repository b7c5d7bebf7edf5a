"""The cache of built kernels, around a compiler that writes a few bytes: hits, misses, corruption, rivals, kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from specs import KERNELS

from cutlass_ops.building import build, sass
from cutlass_ops.printers import cpp
from cutlass_ops.spec.kernel import Kernel

KERNEL = KERNELS["gelu.cpp.sm_80"]
CODE = sass.Code(registers=100, stack_bytes=0, local_loads=0, tensor_core={"HMMA.16816": 64}, instructions=1000)
# Notes each run beside the cache, waits as long as it is told, and writes a library that names its process.
COMPILER = """
import os, sys, time
from pathlib import Path
directory = Path(sys.argv[1])
with (directory.parent / "runs.txt").open("a") as runs:
    runs.write(f"{os.getpid()} {os.environ['CUDA_VISIBLE_DEVICES']!r}\\n")
time.sleep(float(os.environ.get("COMPILER_SECONDS", "0")))
if "COMPILER_ERROR" in os.environ:
    sys.exit(os.environ["COMPILER_ERROR"])
(directory / "scratch").mkdir()
(directory / "kernel.so").write_bytes(b"library of %d" % os.getpid())
"""


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch)


def _install(monkeypatch: pytest.MonkeyPatch) -> None:
    printer = SimpleNamespace(
        __file__=cpp.__file__,
        SOURCE="kernel.cu",
        refusal=cpp.refusal,
        source=cpp.source,
        environment=cpp.environment,
        commands=lambda kernel, directory, nvcc: [[sys.executable, "-c", COMPILER, str(directory)]],
    )
    monkeypatch.setitem(build.PRINTERS, "cpp", printer)  # type: ignore[arg-type]
    monkeypatch.setattr(build, "_versions", lambda printer: {"nvcc": "1.2.3"})
    monkeypatch.setattr(sass, "tool", lambda name: name)
    monkeypatch.setattr(sass, "read", lambda library: CODE)


def _runs(where: Path) -> list[str]:
    return (where / "runs.txt").read_text().splitlines()


def test_built_once(tmp_path: Path) -> None:
    first = build.build(KERNEL, tmp_path)
    again = build.build(KERNEL, tmp_path)
    assert first == again
    assert first.library.read_bytes().startswith(b"library of ")
    assert (first.directory / "kernel.cu").read_text() == cpp.source(KERNEL)
    assert first.manifest.code == CODE
    assert first.manifest.bytes == first.library.stat().st_size
    assert first.kernel == KERNEL
    assert len(_runs(tmp_path)) == 1
    assert sorted(p.name for p in first.directory.iterdir()) == [
        "kernel.cu",
        "kernel.json",
        "kernel.so",
        "manifest.json",
    ]


def test_compiler_sees_no_gpu(tmp_path: Path) -> None:
    build.build(KERNEL, tmp_path)
    assert _runs(tmp_path)[0].split()[1] == "''"


def test_key_follows_all_that_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {build.key_of(kernel) for kernel in KERNELS.values() if kernel.printer == "cpp"}
    keys.add(build.key_of(replace(KERNEL, arch="sm_86")))
    keys.add(build.key_of(replace(KERNEL, tiling=replace(KERNEL.tiling, stages=4))))
    monkeypatch.setattr(build, "_versions", lambda printer: {"nvcc": "1.2.4"})
    keys.add(build.key_of(KERNEL))
    monkeypatch.setattr(build.PRINTERS["cpp"], "source", lambda kernel: cpp.source(kernel) + "// another printer")
    keys.add(build.key_of(KERNEL))
    assert len(keys) == sum(kernel.printer == "cpp" for kernel in KERNELS.values()) + 4


@pytest.mark.parametrize("file", ["kernel.so", "kernel.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_corrupt_entry_is_a_miss(tmp_path: Path, file: str, damage: str) -> None:
    entry = build.build(KERNEL, tmp_path)
    path = entry.directory / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:7] if damage == "cut" else b'{"x": 1}')
    assert build.find(entry.manifest.key, tmp_path) is None
    assert build.entries(tmp_path) == []
    mended = build.build(KERNEL, tmp_path)
    assert build.find(mended.manifest.key, tmp_path) == mended
    assert len(_runs(tmp_path)) == 2


def test_entry_of_another_key_is_a_miss(tmp_path: Path) -> None:
    entry = build.build(KERNEL, tmp_path)
    entry.directory.rename(tmp_path / ("0" * 32))
    assert build.find("0" * 32, tmp_path) is None


def test_entries_by_name(tmp_path: Path) -> None:
    kernels = [kernel for kernel in KERNELS.values() if kernel.printer == "cpp"]
    for kernel in kernels:
        build.build(kernel, tmp_path)
    assert [e.manifest.name for e in build.entries(tmp_path)] == sorted(kernel.name for kernel in kernels)


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPILER_ERROR", "kernel.cu(7): error: no such tile")
    with pytest.raises(build.BuildError, match=r"cpp sm_80 128x128x32: .*kernel.cu\(7\): error: no such tile"):
        build.build(KERNEL, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["locks", "runs.txt"]


def test_too_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPILER_SECONDS", "60")
    with pytest.raises(build.BuildError, match="took longer than 1 s"):
        build.build(KERNEL, tmp_path, seconds=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["locks", "runs.txt"]
    assert not _is_alive(int(_runs(tmp_path)[0].split()[0]))


def test_concurrent_builders_compile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPILER_SECONDS", "0.5")
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=build.build, args=(KERNEL, tmp_path)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(30)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert len(_runs(tmp_path)) == 1
    assert len(build.entries(tmp_path)) == 1


def test_waits_no_longer_than_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPILER_SECONDS", "1")
    context = multiprocessing.get_context("fork")
    rival = context.Process(target=build.build, args=(KERNEL, tmp_path))
    rival.start()
    _wait_for(tmp_path / "runs.txt")
    with pytest.raises(build.BuildError, match="held by another builder for more than 0 s"):
        build.build(KERNEL, tmp_path, seconds=0.1)
    rival.join(30)
    assert rival.exitcode == 0


def test_killed_builder_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPILER_SECONDS", "1")
    context = multiprocessing.get_context("fork")
    builder = context.Process(target=build.build, args=(KERNEL, tmp_path))
    builder.start()
    _wait_for(tmp_path / "runs.txt")
    os.kill(builder.pid or 0, signal.SIGKILL)
    builder.join(30)
    assert list(tmp_path.glob("building-*"))
    assert build.entries(tmp_path) == []
    monkeypatch.setenv("COMPILER_SECONDS", "0")
    entry = build.build(KERNEL, tmp_path, seconds=30)
    assert build.entries(tmp_path) == [entry]
    assert not list(tmp_path.glob("building-*"))


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTLASS_OPS_KERNELS", str(tmp_path))
    assert build.root() == tmp_path
    monkeypatch.delenv("CUTLASS_OPS_KERNELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.root() == tmp_path / "cutlass_ops"


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    fields = json.loads((build.build(KERNEL, tmp_path).directory / "manifest.json").read_text())
    assert fields["versions"] == {"nvcc": "1.2.3"}
    assert fields["code"]["tensor_core"] == {"HMMA.16816": 64}


def test_no_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    build._versions.cache_clear()
    monkeypatch.setattr(sass.importlib.util, "find_spec", lambda name: None)  # nor do NVIDIA's wheels bring it
    kernel: Kernel = KERNEL
    with pytest.raises(FileNotFoundError, match="nvcc is not on the path: install the CUDA toolkit"):
        build.build(kernel, tmp_path)
