"""What can't work in a configuration is found, one line each, with its mend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.main import main

GOOD = """--tensor-model-parallel-size 4 --pipeline-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 32
--num-layers 8 --hidden-size 256 --num-attention-heads 8 --group-query-attention --num-query-groups 4 --swiglu
--ffn-hidden-size 512 --seq-length 256 --bf16 --vocab-size 131072 --use-distributed-optimizer --sequence-parallel
"""
PLACE = ["--cluster", "dgx-h100", "--nodes", "2"]
WRONG = {  # a change of GOOD, and what is said of it
    "--tensor-model-parallel-size 16": "--tensor-model-parallel-size 16 leaves the node of 8 devices",
    "--tensor-model-parallel-size 3": "pp 2 x tp 3 do not divide 16 devices: take 12",
    "--pipeline-model-parallel-size 8": "pp 8 x tp 4 are 32 ranks, and there are 16 devices",
    "--expert-model-parallel-size 16": "--expert-model-parallel-size 16 beside 2 pipeline stages needs 32 devices",
    "--expert-model-parallel-size 5": "--expert-model-parallel-size 5 does not divide the 8 devices of a stage",
    "--global-batch-size 31": "--global-batch-size 31 does not divide by 2 data ranks x 1 a micro-batch: take 32",
    "--micro-batch-size 3": "--global-batch-size 32 does not divide by 2 data ranks x 3 a micro-batch: take 30",
    "--num-layers 9": "9 layers do not divide into 2 x 1 stages: change --pipeline-model-parallel-size",
    "--num-virtual-stages-per-pipeline-rank 3": "8 layers do not divide into 2 x 3 stages",
    "--num-attention-heads 6": "--num-attention-heads 6 does not divide by 4 tensor parallel ranks",
    "--num-query-groups 3": "3 neither divides by 4 tensor parallel ranks nor divides them",
    "--ffn-hidden-size 514": "--ffn-hidden-size 514 does not divide by 4 tensor parallel ranks",
    "--seq-length 258": "--seq-length 258 does not divide by 4 ranks, as sequence parallelism needs: take 256",
    "--context-parallel-size 2 --seq-length 250": "--seq-length 250 does not divide into 4 parts",
    "--tensor-model-paralel-size 2": "is no key that is known: write --tensor-model-parallel-size",
    "--global-batch-size 2": "1 micro-batches do not fill 2 pipeline ranks",
}


def given(tmp_path: Path, text: str, name: str = "train.sh") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.mark.parametrize("change", WRONG)
def test_what_is_wrong_is_found(change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = given(tmp_path, GOOD + change)
    assert main(["lint", path, *PLACE, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "megatron"
    assert any(WRONG[change] in line for line in document["found"]), document["found"]
    assert all("\n" not in line and ": " in line for line in document["found"])
    assert main(["lint", path, *PLACE]) == 1
    assert f"{path}: " in capsys.readouterr().out


def test_a_good_one_is_priced_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", given(tmp_path, GOOD), *PLACE]) == 0
    assert capsys.readouterr().out == "read as megatron: nothing found\n"


def test_groups_that_do_not_divide_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = given(tmp_path, "--use-distributed-optimizer --num-distributed-optimizer-instances 5", "five.txt")
    assert main(["lint", path, "--cluster", "dgx-h100"]) == 1
    assert "--num-distributed-optimizer-instances 5 does not divide the 8 ranks" in capsys.readouterr().out


def test_what_a_framework_has_taken_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = given(tmp_path, '{"zero_optimization": {"stage": 3, "mics_shard_size": 4}}', "d.json")
    assert main(["lint", path, "--cluster", "dgx-h100"]) == 0
    assert "mics_shard_size=4: DeepSpeed has taken MiCS out" in capsys.readouterr().out


TITAN = """[parallelism]\npipeline_parallel_degree = 2\n[training]\nlocal_batch_size = 8\nglobal_batch_size = {}
"""


def test_several_passes_of_a_pipeline_are_a_step_of_torchtitan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", given(tmp_path, TITAN.format(64), "t.toml"), "--cluster", "dgx-h100"]) == 0
    sizes = ["--model", "plain:decoder", "--seq", "32", "--set", "layers=6", "hidden=64", "heads=4", "vocab=512"]
    assert main(["lint", given(tmp_path, TITAN.format(64), "t.toml"), "--cluster", "dgx-h100", *sizes]) == 0
    assert "memory was not looked at: training.global_batch_size 64 is not" in capsys.readouterr().out
    assert main(["lint", given(tmp_path, TITAN.format(48), "t.toml"), "--cluster", "dgx-h100"]) == 1
    assert "training.global_batch_size 48 does not divide by 4 data ranks x 8 in a pass" in capsys.readouterr().out
    one = TITAN.format(4).replace("= 8", "= 1")
    assert main(["lint", given(tmp_path, one, "t.toml"), "--cluster", "dgx-h100"]) == 1
    assert "raise training.local_batch_size" in capsys.readouterr().out


IDLE = {  # options that nothing looks at, or that are none
    "--devices 4": "--devices is of a step on a cluster: give --cluster too",
    "--nodes 4": "--nodes is of a step on a cluster: give --cluster too",
    "--model hf:llama": "--model is of a step on a cluster: give --cluster too",
    "--set vocab=128": "--set is of a step on a cluster: give --cluster too",
    "--seq 0": "--seq must be positive",
    "--global-batch -3": "--global-batch must be positive",
    "--devices 4 --nodes 2 --cluster dgx-h100": "drop one",
    "--model llama --cluster dgx-h100": "MODEL 'llama' is none of",
    "--model hf:lama --cluster dgx-h100 --nodes 2": "no model type of transformers",
    "--set vocab --cluster dgx-h100": "--set takes key=value",
    "--set depth=3 --cluster dgx-h100 --nodes 2": "plain:decoder has layers",
}


@pytest.mark.parametrize("words", IDLE)
def test_options_are_looked_at(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", given(tmp_path, GOOD), *words.split()]) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("partitioner: ")]
    assert IDLE[words] in line


def test_what_the_file_decides_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text, expected in (
        ("d.json", '{"tensor_parallel": {"autotp_size": 2}}', "plans for deepspeed are of dp alone: set it to 1"),
        ("f.sh", GOOD.replace("--hidden-size 256", "--hidden-size 260"), "do not divide"),
        ("g.sh", "torchrun --nproc_per_node 12 p.py " + GOOD, "12 ranks are no whole nodes of dgx-h100"),
    ):
        assert main(["lint", given(tmp_path, text, name), "--cluster", "dgx-h100"]) == 1
        assert expected in " ".join(capsys.readouterr().out.split())


def test_what_can_not_be_read_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change in ("--recompute-granularity full", "--num-layers -8", "--bf16 maybe"):
        assert main(["lint", given(tmp_path, GOOD + change), *PLACE]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_what_does_not_fit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = GOOD.replace("--hidden-size 256", "--hidden-size 16384").replace("--num-layers 8", "--num-layers 96")
    assert main(["lint", given(tmp_path, large), *PLACE]) == 1
    out = capsys.readouterr().out
    assert "it does not fit in memory" in out
    assert "what would help" in out


def test_without_a_cluster_what_can_be_counted_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "parallelism: {dp: 2, pp: 3, tp: 4}\nmodel: {model_config: {num_hidden_layers: 8, hidden_size: 64}}\n"
    assert main(["lint", given(tmp_path, text, "n.yaml")]) == 1
    out = capsys.readouterr().out
    assert "8 layers do not divide into 3 x 1 stages" in out
    assert "memory was not looked at: give --cluster" in out


def test_what_no_plan_holds_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = given(tmp_path, '{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}', "d.json")
    assert main(["lint", path]) == 0
    assert "note: zero_optimization.offload_param.device=cpu: a plan keeps all" in capsys.readouterr().out


def test_a_plan_is_looked_at_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    words = ["plan", "plain:decoder", "--set", "layers=2", "hidden=64", "heads=4", "vocab=128", "--seq", "64"]
    assert main([*words, *PLACE, "--global-batch", "32", "--pin", "tp=4", "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["lint", str(path)]) == 0
    assert capsys.readouterr().out == "read as plan: nothing found\n"
    assert main(["lint", str(path), "--cluster", "l40s-8", "--devices", "2", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["found"]
    assert any("there are 2 devices" in line for line in found)
    for word in ("--model=hf:llama", "--set=vocab=2", "--seq=8", "--global-batch=8"):
        assert main(["lint", str(path), word]) == 2
        assert f"{word.partition('=')[0]} says nothing of a plan" in capsys.readouterr().err
    document = json.loads(path.read_text())
    document["decisions"]["micro_batch"] = 64
    path.write_text(json.dumps(document))
    assert main(["lint", str(path)]) in (1, 2)


def test_a_file_that_nobody_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", given(tmp_path, "colour: blue\n", "x.yaml")]) == 2
    assert "--framework" in capsys.readouterr().err
