"""A framework's configuration becomes a plan with the decisions of the file, for that framework."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from partitioner import Plan
from tools.main import main

FLAGS = """torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py \\
  --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer \\
  --num-virtual-stages-per-pipeline-rank 2 --micro-batch-size 2 --global-batch-size 32 --bf16 --grad-reduce-in-bf16 \\
  --recompute-granularity full --recompute-method block --recompute-num-layers 1 \\
  --num-layers 8 --hidden-size 128 --num-attention-heads 4 --group-query-attention --num-query-groups 2 --swiglu \\
  --ffn-hidden-size 256 --seq-length 128 --vocab-size 131000 --untie-embeddings-and-output-weights \\
  --lr 1e-4 --overlap-param-gather --some-new-flag 3
"""
MODEL = """
import torch
from torch.nn import functional as F
class Model(torch.nn.Module):
    def __init__(self, depth, width):
        super().__init__()
        self.table = torch.nn.Embedding(512, width)
        self.blocks = torch.nn.ModuleList(torch.nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
                                          for _ in range(depth))
        self.out = torch.nn.Linear(width, 512)
    def forward(self, words, labels):
        x = self.table(words)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.out(x).flatten(0, 1), labels.flatten())
def build(depth=4, width=64, seq=32, batch=2):
    words = torch.randint(512, (batch, seq))
    return Model(depth, width), {"words": words, "labels": words.clone()}
"""
INSIDE = """
import torch
from torch.nn import functional as F
class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix, self.norm = torch.nn.Parameter(torch.eye(width) / 8), torch.nn.LayerNorm(width)
        self.up, self.down = torch.nn.Linear(width, 2 * width), torch.nn.Linear(2 * width, width)
    def forward(self, x):
        x = x + x @ torch.linalg.matrix_exp(self.mix)
        return x + self.down(F.gelu(self.up(self.norm(x))))
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = torch.nn.Embedding(512, 64), torch.nn.Linear(64, 512)
        self.blocks = torch.nn.ModuleList(Block(64) for _ in range(4))
    def forward(self, words, labels):
        x = self.table(words)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.out(x).flatten(0, 1), labels.flatten())
def build(batch=2):
    words = torch.randint(512, (batch, 32))
    return Model(), {"words": words, "labels": words.clone()}
"""
PLACE = ["--cluster", "dgx-h100"]


def given(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_a_script_of_megatron(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    assert main(["from", "megatron", given(tmp_path, "train.sh", FLAGS), *PLACE, "-o", str(path)]) == 0
    out = capsys.readouterr().out
    assert "not known, and not in the plan: --some-new-flag" in out
    assert re.search(r"--tensor-model-parallel-size +2 +tp\b", out)
    plan = Plan.load(path)
    own = plan.parallelism
    assert own.mesh == {"pp": 2, "dp": 4, "tp": 2}
    assert (own.virtual, own.schedule, own.micro_batch, own.micro_batches) == (2, "interleaved", 2, 4)
    assert (own.zero, own.zero_group, own.recompute, plan.decisions.recomputed) == (1, 0, "full", (1, 1, 1, 1))
    assert plan.machine.software.name == "megatron"
    traits = plan.machine.software
    assert (traits.overlap_gradients, traits.overlap_parameters, traits.overlap_tensor) == (False, True, False)
    assert plan.machine.nodes == 2
    assert plan.decisions.precision.gradients == ""
    assert plan.model["settings"]["vocab"] == 131072  # padded to 128 a rank
    assert plan.parameters["blocks.0.attention.qkv.weight"][0][0] == 0
    assert plan.parameters["blocks.0.down.weight"][0][0] == 1
    assert not plan.stale


def test_what_was_read_is_shown_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    assert main(["from", "megatron", given(tmp_path, "f.sh", FLAGS), *PLACE, "--nodes", "1", "-o", str(path)]) == 0
    assert "makes 16 devices in the file, 8 of the cluster are taken" in " ".join(capsys.readouterr().out.split())
    assert main(["show", str(path)]) == 0
    assert main(["run", str(path), "--steps", "1"]) == 2
    assert "Megatron-LM" in capsys.readouterr().err


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    model, path = f"{given(tmp_path, 'mine.py', MODEL)}:build", tmp_path / "plan.json"
    config = given(tmp_path, "ds.json", '{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}')
    words = ["from", "deepspeed", config, "--model", model, "--set", "depth=6", *PLACE, "--global-batch", "16"]
    assert main([*words, "-o", str(path)]) == 0
    plan = Plan.load(path)
    assert (plan.parallelism.zero, plan.parallelism.mesh["dp"], plan.model["blocks"]) == (2, 8, 6)
    assert plan.machine.software.name == "deepspeed"
    assert any("does not say micro-batch and recompute" in note for note in plan.notes)


def test_what_no_layout_divides_is_said(tmp_path: Path) -> None:
    model, path = f"{given(tmp_path, 'inside.py', INSIDE)}:build", tmp_path / "plan.json"
    flags = given(tmp_path, "f.sh", "--tensor-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 16 --bf16")
    assert main(["from", "megatron", flags, "--model", model, *PLACE, "-o", str(path)]) == 0
    assert any("no layout divides all weights" in note for note in Plan.load(path).notes)


def test_a_model_without_blocks(tmp_path: Path) -> None:
    text = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)
    def forward(self, x, labels):
        return torch.nn.functional.cross_entropy(self.linear(x), labels)
def build(batch=2):
    return Model(), {"x": torch.randn(batch, 64), "labels": torch.zeros(batch, dtype=torch.int64)}
"""
    model = f"{given(tmp_path, 'flat.py', text)}:build"
    config = given(tmp_path, "d.json", '{"bf16": {"enabled": true}}')
    assert main(["from", "deepspeed", config, "--model", model, *PLACE, "--global-batch", "16"]) == 0


def test_uneven_stages_are_as_torchtitan_cuts_them(tmp_path: Path) -> None:
    text = """[training]\nlocal_batch_size = 4\n[parallelism]\npipeline_parallel_degree = 4
    [activation_checkpoint]\nmode = "none"\n"""
    model, path = f"{given(tmp_path, 'mine.py', MODEL)}:build", tmp_path / "plan.json"
    words = ["from", "torchtitan", given(tmp_path, "t.toml", text), "--model", model, "--set", "depth=9", *PLACE]
    assert main([*words, "--global-batch", "8", "-o", str(path)]) == 0
    plan = Plan.load(path)
    assert [sum("blocks" in unit for unit in stage) for stage in plan.decisions.stages] == [2, 3, 3, 1]
    assert (plan.parallelism.zero, plan.parallelism.micro_batch) == (2, 1)


BAD = {
    "tp": ("--tensor-model-parallel-size 3 --global-batch-size 8", [], "tp 3 does not divide the 8 devices"),
    "cluster": ("--bf16", ["--cluster", "dgx-h10"], "nearest is dgx-h100"),
    "batch": (FLAGS.replace("--global-batch-size 32", ""), [], "--global-batch-size is not in the file"),
    "layers": (FLAGS.replace("--num-layers 8", "--num-layers 6"), [], "6 layers do not divide into 2 x 2 stages"),
    "experts": (FLAGS + "--expert-model-parallel-size 2", [], "no expert parallelism yet: set it to 1"),
    "model of experts": (FLAGS + "--num-experts 8", [], "8 experts, and the plain decoder none: give --model"),
    "no sizes": ("--bf16 --global-batch-size 8", [], "does not hold the sizes of the model: give --model"),
    "no vocabulary": (FLAGS.replace("--vocab-size 131000", ""), [], "give --set vocab=N"),
    "heads": (FLAGS + "--kv-channels 64", [], "heads of 64"),
    "offload": (FLAGS + "--optimizer-cpu-offload", [], "--optimizer-cpu-offload=True: a plan keeps all on the device"),
    "latent": (FLAGS + "--multi-latent-attention", [], "no latent attention: give --model"),
    "fsdp": (FLAGS + "--use-megatron-fsdp", [], "megatron can't be told"),
    "nodes": (FLAGS, ["--nodes", "0"], "--nodes must be positive"),
    "groups": (FLAGS + "--num-distributed-optimizer-instances 3", [], "instances 3 does not divide the 4 ranks"),
    "layout": (FLAGS.replace("--num-virtual-stages-per-pipeline-rank 2", "--pipeline-model-parallel-layout Ett|tL"), [],
               "the stages hold 3 layers, the model has 8: change --pipeline-model-parallel-layout"),
    "context": (FLAGS.replace("--seq-length 128", "--seq-length 126") + "--context-parallel-size 2", [], "take 124"),
    "tokens": (FLAGS, ["--seq", "99999999999999"], "99,999,999,999,999 tokens a sample: take 1 to 16,777,216"),
    "nodes and devices": (FLAGS, ["--nodes", "1", "--devices", "4"], "--devices are of one node"),
    "batch divided": (FLAGS.replace("--global-batch-size 32", "--global-batch-size 12"), [], "global batch of 12"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words, expected = BAD[name]
    place = words if "--cluster" in words else [*PLACE, *words]
    assert main(["from", "megatron", given(tmp_path, "train.sh", text), *place]) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("partitioner: ")]
    assert expected in line


def test_more_blocks_recomputed_than_there_are_is_all_of_them(tmp_path: Path) -> None:
    path, out = tmp_path / "plan.json", FLAGS.replace("--recompute-num-layers 1", "--recompute-num-layers 99")
    assert main(["from", "megatron", given(tmp_path, "train.sh", out), *PLACE, "-o", str(path)]) == 0
    assert Plan.load(path).decisions.recomputed == (2, 2, 2, 2)


PRODUCTS = {  # a batch that is not all of its micro-batches
    "deepspeed": ('{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}',
                  "train_batch_size 64 is not 8 data ranks x 3 micro-batches of 2: take 48"),
    "deepspeed without micro-batch": ('{"train_batch_size": 64, "gradient_accumulation_steps": 3}', "take 72"),
    "torchtitan": ("[training]\nlocal_batch_size = 8\nglobal_batch_size = 64\n"
                   "[parallelism]\npipeline_parallel_degree = 2",
                   "training.global_batch_size 64 is not 4 data ranks x training.local_batch_size 8"),
    "nanotron": ("parallelism: {dp: 8, pp: 1, tp: 1}\n"
                 "tokens: {micro_batch_size: 1, batch_accumulation_per_replica: 2}", "global batch 64 is not 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_batch_that_is_no_product_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, expected = PRODUCTS[name]
    model = f"{given(tmp_path, 'mine.py', MODEL)}:build"
    more = ["--global-batch", "64"] if name == "nanotron" else []
    words = ["from", name.partition(" ")[0], given(tmp_path, "file", text), "--model", model, *PLACE, *more]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_a_micro_batch_follows_from_what_is_said(tmp_path: Path) -> None:
    text = '{"train_batch_size": 64, "gradient_accumulation_steps": 4}'
    model, path = f"{given(tmp_path, 'mine.py', MODEL)}:build", tmp_path / "plan.json"
    assert main(["from", "deepspeed", given(tmp_path, "d.json", text), "--model", model, *PLACE, "-o", str(path)]) == 0
    assert (Plan.load(path).parallelism.micro_batch, Plan.load(path).parallelism.micro_batches) == (2, 4)


def test_torchtitan_adds_up_gradients_without_a_pipeline(tmp_path: Path) -> None:
    text = "[training]\nlocal_batch_size = 4\n"
    model, path = f"{given(tmp_path, 'mine.py', MODEL)}:build", tmp_path / "plan.json"
    words = ["from", "torchtitan", given(tmp_path, "t.toml", text), "--model", model, *PLACE, "-o", str(path)]
    assert main([*words, "--global-batch", "64"]) == 0
    assert (Plan.load(path).parallelism.micro_batch, Plan.load(path).parallelism.micro_batches) == (4, 2)


def test_sizes_that_are_not_taken_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--num-layers 8 --hidden-size 512 --num-attention-heads 8 --micro-batch-size 1 --global-batch-size 16"
    model, path = f"{given(tmp_path, 'mine.py', MODEL)}:build", tmp_path / "plan.json"
    words = ["from", "megatron", given(tmp_path, "f.sh", flags), *PLACE, "-o", str(path)]
    assert main([*words, "--model", model]) == 0
    assert not re.search(r"--hidden-size +512", capsys.readouterr().out)
    (note,) = [note for note in Plan.load(path).notes if "not taken" in note]
    assert note.endswith(": --num-layers, --hidden-size, --num-attention-heads")
    assert main([*words, "--seq", "64", "--set", "hidden=256", "vocab=1024"]) == 0
    assert re.search(r"--hidden-size +512", capsys.readouterr().out)
    assert "--hidden-size is 512 in the file, --set hidden=256 is taken" in Plan.load(path).notes


def test_what_is_no_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary").write_bytes(b"\x80\x81\xff\x00")
    (tmp_path / "zeros").write_bytes(b"\x00\x00")
    empty = given(tmp_path, "empty", " \n")
    for path in (str(tmp_path / "none"), str(tmp_path), str(tmp_path / "binary"), str(tmp_path / "zeros"), empty):
        assert main(["from", "fsdp", path, *PLACE]) == 2
        assert main(["lint", path]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 10
    assert all(line.startswith("partitioner: ") for line in told)
    assert main(["from", "colossal", empty, *PLACE]) == 2


def test_a_plain_decoder_is_a_model_like_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sizes = tmp_path / "plan.json", ["layers=2", "hidden=32", "heads=4", "vocab=64"]
    words = ["plan", "plain:decoder", "--set", *sizes, "--cluster", "local-cpu", "--global-batch", "8"]
    assert main([*words, "--seq", "16", "--devices", "1", "-o", str(path)]) == 0
    assert main(["verify", str(path)]) == 0
    assert "all equal" in capsys.readouterr().out
    for wrong, expected in (("heads=3", "do not divide"), ("layers=-1", "positive"), ("gated=2", "true or false"),
                            ("depth=3", "plain:decoder has layers")):  # fmt: skip
        assert main([*words, wrong, "--seq", "16"]) == 2 or expected == ""
    assert main(words) == 2
    assert "--seq S is missing" in capsys.readouterr().err
