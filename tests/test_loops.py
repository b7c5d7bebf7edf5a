"""The README's diffs turn plain loops into parallel ones that train the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
DIFFS = dict(re.findall(r"^```diff file=(\S+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL))
MOST_ADDED = 4  # beside imports, and the example batch


def applied(text: str, diff: str) -> str:
    """``diff``: lines that stay, go (-) and come (+), in order; between ``...`` others stay."""
    lines, made = text.splitlines(), list[str]()
    for line in diff.splitlines():
        if line == "...":
            continue
        sign, rest = line[:1], line[1:]
        if sign == "+":
            if not made:  # imports stand behind the docstring and the plain ones
                while not lines[0].startswith(("import ", "from ")):
                    made.append(lines.pop(0))
            made.append(rest)
            continue
        while lines[0] != rest:
            made.append(lines.pop(0))
        gone = lines.pop(0)
        if sign != "-":
            made.append(gone)
    return "\n".join([*made, *lines]) + "\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


def losses(command: list[str], folder: Path, ranks: int) -> list[float]:
    """As each rank prints them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    found = sorted(float(x) for x in re.findall(r"loss (\d+\.\d+)", done.stdout))
    assert len(found) >= 4 * ranks
    return found[::ranks]


@pytest.mark.readme
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", DIFFS)
def test_the_loop_trains_the_same(name: str, weights: Path, tmp_path: Path) -> None:
    plain, parallel = ROOT / name, tmp_path / "parallel.py"
    parallel.write_text(applied(plain.read_text(), DIFFS[name]))
    here, there = tmp_path / "plain", tmp_path / "torchrun"
    here.mkdir(), there.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    wanted = losses([sys.executable, str(plain), str(weights)], here, 1)
    found = losses([*launcher, str(parallel), str(weights)], there, 2)
    assert found == pytest.approx(wanted, abs=2e-4)
    assert max(wanted) - min(wanted) > 0.01
    if (here / "adapter").exists():
        both = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (here, there)]
        assert both[0].keys() == both[1].keys()
        assert all(torch.allclose(both[0][key], both[1][key], atol=1e-4) for key in both[0])
        assert any(bool(t.abs().max() > 1e-3) for key, t in both[0].items() if "lora_B" in key)


def test_few_lines_come_in() -> None:
    assert len(DIFFS) == 4
    for name, diff in DIFFS.items():
        added = [line[1:] for line in diff.splitlines() if line.startswith("+")]
        counted = [line for line in added if not line.startswith(("from ", "example = "))]
        assert 0 < len(counted) <= MOST_ADDED, name
        compile(applied((ROOT / name).read_text(), diff), name, "exec")
