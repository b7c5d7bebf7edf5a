"""The README's code runs: ``run`` blocks in order, in a folder that has the examples; ``file=`` blocks are written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README, OPERATIONS = ((ROOT / name).read_text() for name in ("README.md", "docs/operations.md"))
SECONDS = 240
SRUN = """
export SLURM_JOB_ID=$$ SLURM_STEP_NUM_TASKS=4 SLURM_STEP_TASKS_PER_NODE=4 SLURM_STEP_NODELIST=127.0.0.1
while [[ $1 == --* ]]; do shift; done
for n in 3 2 1; do SLURM_PROCID=$n SLURM_LOCALID=$n "$@" & done
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what is to be done with it ("run", "file=NAME" or nothing), and its text."""

    language: str
    action: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*) ?(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel of this project holds, unpacked."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for package in ("partitioner", "runtime", "cutlass_ops", "tools"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-w", str(source), "."], cwd=source, check=True)
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the examples, and the commands of this interpreter first on the path."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "bin").mkdir()
    for command, module in (("partitioner", "tools.main"), ("torchrun", "torch.distributed.run"), ("python", "")):
        script = tmp_path / "bin" / command
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {f"-m {module}" if module else ""} "$@"\n')
        script.chmod(0o755)
    for command, text in {"srun": SRUN, "sbatch": 'exec bash "$1"'}.items():
        (tmp_path / "bin" / command).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / command).chmod(0o755)
    return tmp_path


def run(block: Block, folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    variables = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{site}:{folder}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return subprocess.run(
        [*command, block.text], cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=SECONDS
    )


@pytest.mark.readme
@pytest.mark.timeout(2 * SECONDS)
def test_the_blocks_run_from_an_installed_wheel(folder: Path, site: Path) -> None:
    where = Block("python", "run", "import partitioner, runtime, tools; print(tools.__file__)\n")
    assert run(where, folder, site).stdout.startswith(str(site))
    run_all(README, folder, site)
    left = {path.name for path in folder.iterdir()}
    assert {"plan.json", "plan.svg", "report.json", "llama.json", "small.json", "checkpoints"} <= left


@pytest.mark.readme
@pytest.mark.timeout(2 * SECONDS)
def test_an_operator_can_do_as_is_said(folder: Path, site: Path) -> None:
    run_all(OPERATIONS, folder, site)
    assert (folder / "weights" / "model.safetensors").exists()
    assert len(blocks(OPERATIONS)) == len([b for b in blocks(OPERATIONS) if b.action == "run"])


def run_all(text: str, folder: Path, site: Path) -> None:
    for block in blocks(text):
        if block.action.startswith("file=") and block.language != "diff":
            (folder / block.action.removeprefix("file=")).write_text(block.text)
        if block.action == "run":
            result = run(block, folder, site)
            assert result.returncode == 0, f"{block.text}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"


MADE = [["make", "install"], ["make", "apps"]]  # before there is anything; of minutes


def test_every_python_block_is_executed_and_bash_ones_but_what_make_does() -> None:
    found = blocks(README)
    assert [b for b in found if b.language == "python" and not b.action] == []
    assert [b.text.split()[:2] for b in found if b.language == "bash" and not b.action] == MADE
    assert {b.action for b in found if b.language != "diff"} == {"", "run", "file=my_model.py", "file=train.py"}


def test_a_failing_block_is_noticed(folder: Path, site: Path) -> None:
    assert run(Block("bash", "run", "false\ntrue\n"), folder, site).returncode
    assert run(Block("python", "run", "import not_there\n"), folder, site).returncode
    assert run(Block("bash", "run", "partitioner show nothing.json\n"), folder, site).returncode == 2


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
