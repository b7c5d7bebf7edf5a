"""Kernels compiled ahead of time and kept: a directory an entry, found again by everything that decided its bytes.

    ROOT/KEY/kernel.so    kernel.json    manifest.json    epilogue.py or kernel.cu

A key is the hash of the kernel, its printed text, the printer's own files, and the versions of compiler and packages.
Compilers run in processes of their own that see no GPU. An entry appears whole (renamed into place) or not at all; one
whose library is not what its manifest says is a miss.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from cutlass_ops.building import sass
from cutlass_ops.building.sass import Code
from cutlass_ops.printers import cpp, cute
from cutlass_ops.spec import kernel, targets
from cutlass_ops.spec.kernel import Kernel

PRINTERS: dict[str, ModuleType] = dict(zip(targets.PRINTERS, (cute, cpp), strict=True))
SECONDS = 900.0


class BuildError(RuntimeError):
    """A kernel that does not compile, or a builder that could not run."""


@dataclass(frozen=True)
class Manifest:
    """What was built and what came out."""

    key: str
    name: str
    seconds: float
    bytes: int
    sha256: str
    versions: dict[str, str]
    code: Code


@dataclass(frozen=True)
class Entry:
    directory: Path
    kernel: Kernel
    manifest: Manifest

    @property
    def library(self) -> Path:
        return self.directory / "kernel.so"


def root() -> Path:
    """Where kernels are kept: $CUTLASS_OPS_KERNELS, or the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CUTLASS_OPS_KERNELS") or Path(cache) / "cutlass_ops")


def refusal(kernel: Kernel) -> str | None:
    """Why no such kernel can be printed, or None."""
    return PRINTERS[kernel.printer].refusal(kernel)


def key_of(kernel_: Kernel) -> str:
    """32 hexadecimal digits. FileNotFoundError or PackageNotFoundError where the compiler is not installed."""
    printer = PRINTERS[kernel_.printer]
    parts = [kernel.to_json(kernel_), printer.source(kernel_), json.dumps(_versions(kernel_.printer), sort_keys=True)]
    files = [Path(printer.__file__ or ""), *sorted(cpp.INCLUDE.glob("*.cuh"))]
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def find(key: str, where: Path) -> Entry | None:
    """The entry of that key, or None where it is missing, unreadable or not what its manifest says."""
    directory = where / key
    try:
        fields: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
        code = Code(**fields.pop("code"))
        manifest = Manifest(**fields, code=code)
        entry = Entry(directory, kernel.from_json((directory / "kernel.json").read_text()), manifest)
        whole = hashlib.sha256(entry.library.read_bytes()).hexdigest() == manifest.sha256 and manifest.key == key
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return entry if whole else None


def entries(where: Path) -> list[Entry]:
    """All whole entries, by name."""
    found = [find(path.parent.name, where) for path in sorted(where.glob("*/manifest.json"))]
    return sorted((e for e in found if e is not None), key=lambda e: (e.manifest.name, e.manifest.key))


def build(kernel_: Kernel, where: Path, seconds: float = SECONDS) -> Entry:
    """The kernel's entry, compiled where it is not there yet; two builders of one kernel compile it once.

    BuildError where the compiler refuses it, takes longer than ``seconds``, or another builder does.
    """
    if (reason := refusal(kernel_)) is not None:
        raise BuildError(f"{kernel_.name}: {reason}")
    key = key_of(kernel_)
    if (entry := find(key, where)) is not None:
        return entry
    with _locked(where / "locks" / key, seconds):
        if (entry := find(key, where)) is not None:
            return entry
        for stale in where.glob(f"building-{key}-*"):
            shutil.rmtree(stale, ignore_errors=True)  # its compiler may be running still
        directory = Path(tempfile.mkdtemp(prefix=f"building-{key}-", dir=where))
        try:
            _compile(kernel_, key, directory, seconds)
            shutil.rmtree(where / key, ignore_errors=True)
            directory.rename(where / key)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    entry = find(key, where)
    if entry is None:
        raise BuildError(f"{kernel_.name}: {where / key} was changed while it was written")
    return entry


def _compile(kernel_: Kernel, key: str, directory: Path, seconds: float) -> None:
    """Fill ``directory`` with an entry."""
    printer, start = PRINTERS[kernel_.printer], time.monotonic()
    (directory / "kernel.json").write_text(kernel.to_json(kernel_))
    (directory / printer.SOURCE).write_text(printer.source(kernel_))
    for command in printer.commands(kernel_, directory, sass.tool("nvcc")):
        _run(command, printer.environment(kernel_, directory), seconds, kernel_.name)
    library = directory / "kernel.so"
    manifest = Manifest(
        key=key,
        name=kernel_.name,
        seconds=round(time.monotonic() - start, 1),
        bytes=library.stat().st_size,
        sha256=hashlib.sha256(library.read_bytes()).hexdigest(),
        versions=_versions(kernel_.printer),
        code=sass.read(library),
    )
    kept = {library.name, "kernel.json", printer.SOURCE}
    for path in directory.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (directory / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1))


def _run(command: list[str], variables: dict[str, str], seconds: float, name: str) -> None:
    """Run a compiler in a session of its own with no GPU in sight; on the way out nothing of it is left."""
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **variables, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{name}: {Path(command[0]).name} took longer than {seconds:.0f} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise BuildError(f"{name}: {Path(command[0]).name} ended with {process.returncode}: {_reason(output)}")


def _reason(output: str) -> str:
    """What a C++ compiler complained of first, or what a Python program ended with."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    return next((line for line in lines if " error: " in line), lines[-1])[:400]


@contextlib.contextmanager
def _locked(path: Path, seconds: float) -> Generator[None]:
    """Hold ``path`` alone; the lock of a killed process is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise BuildError(f"{path} is held by another builder for more than {seconds:.0f} s") from error
                time.sleep(0.05)
        yield


@cache
def _versions(printer: str) -> dict[str, str]:
    nvcc = subprocess.run([sass.tool("nvcc"), "--version"], capture_output=True, text=True, check=True, timeout=60)
    release = re.search(r"V(\d+\.\d+\.\d+)", nvcc.stdout)
    return {
        **PRINTERS[printer].versions(),
        "nvcc": release.group(1) if release else nvcc.stdout,
        "machine": platform.machine(),
    }
