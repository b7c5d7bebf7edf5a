"""Every command, from arguments to exit status and what it prints; ranks start where nothing less tells."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import partitioner
from partitioner import Plan
from partitioner.hardware.parts import presets
from runtime.report import Report
from tools.main import main

ROOT = Path(__file__).parents[2]
GPT = f"{ROOT / 'examples' / 'gpt.py'}:model"
SMALL = ["--set", "vocab=256", "hidden=32", "heads=4", "seq=32", "layers=2"]
PLACE = ["--cluster", "local-cpu", "--global-batch", "8"]
SPLIT = ["--pin", "tp=2", "--pin", "pp=1", "--pin", "dp=1", "--devices", "2"]
LLAMA = ["hidden_size=32", "intermediate_size=48", "num_hidden_layers=2", "num_attention_heads=4", "vocab_size=256"]
BRANCHING = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
    def forward(self, x):
        y = self.linear(x)
        return y.mean() if y.sum() > 0 else y.sum()
def model():
    return Model(), {"x": torch.ones(2, 4)}
"""
MIXING = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
    def forward(self, x, labels):
        y = self.linear(x)
        return torch.nn.functional.cross_entropy(y - y.mean(0), labels)
def model(batch: int = 2):
    return Model(), {"x": torch.ones(batch, 4), "labels": torch.zeros(batch, dtype=torch.int64)}
"""
RULELESS = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)
    def forward(self, x, labels):
        logits = self.down(torch.fft.hfft(self.up(x), 32))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
def model(batch: int = 2):
    torch.manual_seed(0)
    return Model(), {"x": torch.randn(batch, 8, 16), "labels": torch.randint(16, (batch, 8))}
"""
UNEQUAL = """
import os, torch
from examples import gpt
def model(batch: int = 2):
    module, example = gpt.model(vocab=256, hidden=32, heads=4, seq=32, layers=2, batch=batch)
    with torch.no_grad():
        module.head.weight.add_(int(os.environ.get("RANK", "0")))
    return module, example
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert main(["plan", GPT, *SMALL, *PLACE, *SPLIT, "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("staged") / "staged.json"
    assert main(["plan", GPT, *SMALL, *PLACE, "--pin", "tp=2", "--pin", "pp=2", "-o", str(path)]) == 0
    return path


def test_plan_prints_one_document_and_the_same_one_again(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", GPT, *SMALL, *PLACE, *SPLIT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(plan.read_text())


def test_diff_names_what_changed(plan: Path, staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(plan), str(plan)]) == 0
    assert main(["diff", str(plan), str(staged)]) == 1
    assert "mesh: pp 1 dp 1 tp 2 -> pp 2 dp 1 tp 2" in capsys.readouterr().out


def test_clusters_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clusters"]) == 0
    out = capsys.readouterr().out
    assert [name for name in presets() if not re.search(rf"(?m)^\W*{re.escape(name)}\b", out)] == []


def test_run_learns_and_reports(plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert main(["run", str(plan), "--steps", "4", "--lr", "0.01", "--report", str(path)]) == 0
    found = Report.load(path)
    assert len(found.losses) == found.steps == len(found.all_step_seconds) == 4
    assert found.losses[-1] < found.losses[0]
    assert found.ranks == 2
    assert found.step_seconds > 0
    assert found.peak_bytes > 0
    assert found.predicted == Plan.load(plan).cost
    assert min(found.measured[part] for part in ("compute", "pipeline", "optimizer")) > 0


def test_a_plan_of_one_device_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.json"
    assert main(["plan", GPT, *SMALL, *PLACE, "--devices", "1", "-o", str(path)]) == 0
    assert main(["verify", str(path)]) == 0
    assert "all equal" in capsys.readouterr().out


def test_verify_passes_and_fails(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(plan)]) == 0
    assert "all equal" in capsys.readouterr().out
    (tmp_path / "unequal.py").write_text(UNEQUAL)
    unequal = tmp_path / "unequal.json"
    divided = ["--pin", "head.weight=shard:0", "-o", str(unequal)]
    assert main(["plan", f"{tmp_path / 'unequal.py'}:model", *PLACE, *SPLIT, *divided]) == 0
    assert main(["verify", str(unequal)]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out


@pytest.mark.parity
def test_weights_come_back_from_transformers(tmp_path: Path) -> None:
    path, saved, again = tmp_path / "plan.json", tmp_path / "saved", tmp_path / "again"
    out, second = tmp_path / "out", tmp_path / "second"
    place = ["--seq", "32", *PLACE, "--devices", "1", "-o", str(path)]
    assert main(["plan", "hf:llama", "--set", *LLAMA, *place]) == 0
    assert main(["run", str(path), "--steps", "1", "--checkpoint", str(saved)]) == 0
    assert main(["export", str(path), str(saved), str(out)]) == 0
    assert main(["import", str(path), str(out), str(again)]) == 0
    assert main(["run", str(path), "--steps", "1", "--checkpoint", str(again)]) == 0
    assert sorted(f.name for f in again.iterdir()) == ["run.json", "step-00000000", "step-00000001"]
    assert main(["export", str(path), str(again / "step-00000000"), str(second)]) == 0
    assert (out / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    loaded, told = LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    tokens = torch.arange(64).view(2, 32)
    plain = LlamaForCausalLM(loaded.config).eval()
    plain.save_pretrained(tmp_path / "theirs")
    assert main(["import", str(path), str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert main(["export", str(path), str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    back = LlamaForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(back(tokens).logits, plain(tokens).logits)
    assert not torch.equal(back(tokens).logits, loaded.eval()(tokens).logits)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.hidden_size == 32


def _edited(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path, Path], None]:
    def write(plan: Path, target: Path) -> None:
        document = json.loads(plan.read_text())
        change(document)
        target.write_text(json.dumps(document))

    return write


def _text(text: str) -> Callable[[Path, Path], None]:
    return lambda plan, target: target.write_text(text) and None


def _nothing(plan: Path, target: Path) -> None:
    """No file."""


BAD = {
    "cluster": (_nothing, ["plan", GPT, "--cluster", "dgx-h10", "--global-batch", "8"], "nearest is dgx-h100"),
    "TOML": (_text("name = ["), ["plan", GPT, "--cluster", "FILE.toml", "--global-batch", "8"], "is not TOML"),
    "truncated plan": (lambda plan, t: t.write_text(plan.read_text()[:300]), ["show", "FILE.json"], "JSON"),
    "strange field": (_edited(lambda d: d["decisions"].update(mehs=1)), ["show", "FILE.json"], "unknown field 'mehs'"),
    "missing field": (_edited(lambda d: d["decisions"].pop("mesh")), ["show", "FILE.json"], "decisions.mesh"),
    "no plan": (_nothing, ["show", "FILE.json"], "cannot be read"),
    "another model": (
        _edited(lambda d: d["asked"]["model"]["settings"].update(layers=3)), ["verify", "FILE.json"], "another model",
    ),
    "pin": (_nothing, ["plan", GPT, *SMALL, *PLACE, "--pin", "tpp=2"], "nearest name is tp"),
    "degrees": (_nothing, ["plan", GPT, *SMALL, *PLACE, "--pin", "tp=3"], "does not divide 4 devices"),
    "stages": (_nothing, ["plan", GPT, *SMALL, *PLACE, "--pin", "pp=4"], "2 blocks"),
    "batch": (
        _nothing, ["plan", GPT, *SMALL, "--cluster", "local-cpu", "--global-batch", "7", "--pin", "dp=4"], "batch of 7",
    ),
    "setting": (_nothing, ["plan", GPT, *PLACE, "--set", "hiden=3"], "did you mean hidden"),
    "field": (_nothing, ["plan", "hf:llama", *PLACE, "--set", "hiden_size=3"], "did you mean hidden_size"),
    "type": (_nothing, ["plan", "hf:lama", *PLACE], "did you mean llama"),
    "MODEL": (_nothing, ["plan", "nonsense", *PLACE], "none of file.py:function"),
    "file": (_nothing, ["plan", "FILE.py:model", *PLACE], "no such Python file"),
    "branch": (_text(BRANCHING), ["plan", "FILE.py:model", *PLACE], "if y.sum\\(\\) > 0|y.sum"),
    "steps": (_nothing, ["run", "PLAN", "--steps", "0"], "--steps must be positive"),
    "checkpoint": (_nothing, ["export", "PLAN", "FILE", "FILE"], "holds no checkpoint"),
    "safetensors": (_nothing, ["import", "PLAN", "FILE", "FILE"], "model.safetensors"),
    "arguments": (_nothing, ["plan"], "MODEL is missing"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, words, expected = BAD[name]
    command = [w.replace("FILE", str(tmp_path / "given")).replace("PLAN", str(plan)) for w in words]
    write(plan, Path(next((w for w in command if "given" in w), "none").removesuffix(":model")))
    assert main(command) == 2
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("partitioner: ")]
    assert len(lines) == 1
    assert re.search(expected, lines[0])
    assert "Traceback" not in told


def test_bad_data_stops_all_ranks(plan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(plan), "--steps", "1", "--data", str(tmp_path / "nothing")]) == 2
    assert "no such file or folder" in capfd.readouterr().err


def test_empty_data_stops_all_ranks(plan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert main(["run", str(plan), "--steps", "1", "--data", str(tmp_path / "empty.txt")]) == 2
    told = capfd.readouterr().err
    assert "empty.txt" in told
    assert "Traceback" not in told


def test_a_plan_for_another_world_is_refused(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    assert main(["run", str(plan), "--steps", "1"]) == 2
    assert "needs 2 ranks" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops(plan: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(plan), "--steps", "4", "--optimizer", "sgd", "--lr", "1e30", "--clip", "1e30"]
    assert main(command) == 2
    told = capfd.readouterr().err
    assert re.search(r"rank \d.*step \d+: the loss is (nan|inf); first made by \w+", told)
    assert "Traceback" not in told


def test_a_loss_that_mixes_samples_keeps_the_batch_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mixing.py").write_text(MIXING)
    model, path = f"{tmp_path / 'mixing.py'}:model", tmp_path / "mixing.json"
    assert main(["plan", model, *PLACE, "--pin", "dp=2"]) == 2
    assert "mixes samples, so that one micro-batch must hold the whole batch" in capsys.readouterr().err
    assert main(["plan", model, *PLACE, "-o", str(path)]) == 0
    plan = Plan.load(path)
    assert (plan.parallelism.mesh["dp"], plan.parallelism.micro_batches) == (1, 1)
    assert any("mixes samples" in note for note in plan.notes)


def test_an_op_without_a_rule_is_a_line_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ruleless.py").write_text(RULELESS)
    path = tmp_path / "ruleless.json"
    assert main(["plan", f"{tmp_path / 'ruleless.py'}:model", *PLACE, *SPLIT, "-o", str(path)]) == 0
    assert main(["show", str(path)]) == 0
    assert "aten.fft_hfft.default" in capsys.readouterr().out
    assert main(["verify", str(path)]) == 0


def test_what_fits_nowhere_names_the_tightest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "partitioner" / "clusters" / "local-cpu.toml").read_text()
    tiny = tmp_path / "tiny.toml"
    tiny.write_text(re.sub("memory_bytes = .*", "memory_bytes = 1e5", text, count=1))
    assert main(["plan", GPT, *SMALL, "--cluster", str(tiny), "--global-batch", "8"]) == 3
    assert re.search(
        r"no plan fits: the tightest \(pp \d, dp \d, tp \d, micro-batch \d+, recompute \w+\) misses [\d,]+ bytes a "
        r"device; stage \d of \d holds weights, gradients and optimizer state [\d.e-]+ GB",
        " ".join(capsys.readouterr().err.split()),
    )


def test_what_only_reads_files_needs_no_torch() -> None:
    code = "import sys, tools.main, tools.plan.clusters, tools.compare.diff; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "numpy", "scipy", "networkx", "bokeh", "pygraphviz"} & set(ran.stdout.split())


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"partitioner {partitioner.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", partitioner.__version__)


def test_a_project_may_have_folders_of_our_names(tmp_path: Path) -> None:
    for name in ("tools", "runtime", "partitioner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the project's own')")
    plan, command = tmp_path / "plan.json", [sys.executable, "-P", "-m", "tools.main"]
    for words in (["plan", GPT, *PLACE, *SMALL, *SPLIT, "-o", str(plan)], ["run", str(plan), "--steps", "1"]):
        ran = subprocess.run(
            [*command, *words], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert ran.returncode == 0, ran.stderr
