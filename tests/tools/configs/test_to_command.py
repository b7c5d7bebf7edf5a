"""A plan is written so that reading it back decides the same, or is told what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

from partitioner import Plan
from partitioner.plan.json_document import plain
from tools.configs.arguments import WRITTEN
from tools.dialects.known import DIALECTS
from tools.main import main

SIZES = ["layers=8", "hidden=128", "heads=4", "kv_heads=2", "ffn=256", "vocab=131072"]  # too large to be run
PLACE = ["--cluster", "dgx-h100", "--seq", "128", "--set", *SIZES]
LIKE_MEGATRON = {
    "tokens.weight": "shard:0", "head.weight": "shard:0", "blocks.*.attention.qkv.weight": "shard:0",
    "blocks.*.attention.out.weight": "shard:1", "blocks.*.up.weight": "shard:0", "blocks.*.down.weight": "shard:1",
}  # fmt: skip
PLANS = {  # software, pins, more words, and what is told beside the model and what stands in scripts
    "megatron tp": ("megatron", {"tp": 2, "boundary": "sharded", "zero": 1, **LIKE_MEGATRON}, [], []),
    "megatron interleaved": ("megatron", {"tp": 1, "pp": 2, "virtual": 2, "recompute": "selective"}, [], []),
    "megatron block": ("megatron", {"tp": 1, "pp": 2, "recompute": "full", "recomputed": 3}, ["--nodes", "2"], []),
    "megatron cp": ("megatron", {"tp": 1, "cp": 2, "zero": 1, "zero_group": 4}, ["--precision", "fp8"], []),
    "megatron modules": ("megatron", {"tp": 1, "pp": 2, "recompute": "selective+mlp"}, [], []),
    "megatron uneven": ("megatron", {"tp": 1, "pp": 2, "stages": "4,6"}, [], []),
    "megatron ends alone": ("megatron", {"tp": 1, "pp": 2, "virtual": 5}, [], []),
    "bridge": ("megatron-bridge", {"tp": 1, "pp": 4, "zero": 1, "recompute": "full"}, [], []),
    "bridge modules": ("megatron-bridge", {"tp": 1, "pp": 4, "zero": 1, "recompute": "mlp"}, [], []),
    "torchtitan": ("torchtitan", {"tp": 1, "pp": 2, "schedule": "zbv", "zero": 3}, [], []),
    "torchtitan tp": (
        "torchtitan", {"tp": 2, "boundary": "sharded", "recompute": "operators", **LIKE_MEGATRON}, [], [],
    ),
    "torchtitan uneven": (
        "torchtitan", {"tp": 1, "pp": 2, "schedule": "1f1b", "stages": "4,6"}, ["--precision", "fp32"], [],
    ),
    "nanotron": ("nanotron", {"tp": 1, "pp": 2, "schedule": "gpipe", "zero": 1}, [], []),
    "deepspeed": ("deepspeed", {"zero": 3}, ["--nodes", "2", "--precision", "fp16"], []),
    "fsdp": ("fsdp", {"zero": 2}, [], []),
    "fsdp in groups": ("fsdp", {"zero": 3, "zero_group": 4, "recompute": "full"}, ["--nodes", "2"], []),
    "other layouts": ("megatron", {"tp": 2, "blocks.*.up.weight": "replicate"}, [], ["blocks.*.up.weight"]),
    "operators": ("fsdp", {"recompute": "operators"}, [], ["recompute operators: fsdp does none"]),
}  # fmt: skip


def made(path: Path, software: str, pins: dict[str, Any], words: list[str]) -> Plan:
    pinned = [word for key, value in pins.items() for word in ("--pin", f"{key}={value}")]
    asked = ["plan", "plain:decoder", *PLACE, "--for", software, "--global-batch", "32", *words, *pinned]
    assert main([*asked, "-o", str(path)]) == 0
    return Plan.load(path)


@pytest.mark.parametrize("name", PLANS)
def test_what_is_written_reads_back(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    software, pins, words, expected = PLANS[name]
    before = made(tmp_path / "plan.json", software, pins, words)
    framework = next(row.name for row in DIALECTS.values() if row.software == software)
    capfd.readouterr()
    written = str(tmp_path / "config")
    assert main(["to", framework, str(tmp_path / "plan.json"), "-o", written]) == 0
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("not said: ")]
    assert all(any(words in line for line in told) for words in expected)
    steps = [line for line in told if "changes the step" in line]
    assert len(steps) == len(expected)
    nodes = words[words.index("--nodes") + 1] if "--nodes" in words else "1"
    back = ["from", framework, written, *PLACE, "--nodes", nodes, "--global-batch", "32"]
    assert main([*back, "-o", str(tmp_path / "back.json")]) == 0
    after = Plan.load(tmp_path / "back.json")
    assert after.machine.software.name == before.machine.software.name
    left, right = plain(before.decisions), plain(after.decisions)
    if not expected:
        assert left == right
        assert after.software == before.software
        assert before.cost == after.cost
    else:
        assert left != right
        assert left["mesh"] == right["mesh"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("to") / "plan.json"
    made(path, "fsdp", {"zero": 2, "zero_group": 4, "recompute": "full"}, [])
    return path


def test_accelerate_reads_what_is_written(plan: Path, tmp_path: Path) -> None:
    written = tmp_path / "fsdp.yaml"
    assert main(["to", "fsdp", str(plan), "-o", str(written)]) == 0
    found: Any = load_config_from_file(str(written))
    assert (found.num_processes, found.num_machines, found.mixed_precision) == (8, 1, "bf16")
    assert found.fsdp_config["fsdp_version"] == 2
    assert found.fsdp_config["fsdp_reshard_after_forward"] is False
    assert found.fsdp_config["fsdp_activation_checkpointing"] is True
    assert found.parallelism_config["parallelism_config_dp_replicate_size"] == 2
    assert found.parallelism_config["parallelism_config_dp_shard_size"] == 4


def test_what_is_not_said_stands_in_the_file_too(plan: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["to", "fsdp", str(plan)]) == 0
    out, err = capfd.readouterr()
    lines = [line.removeprefix("not said: ") for line in err.splitlines()]
    assert any("per_device_train_batch_size" in line for line in lines)
    assert [line.removeprefix("# not said here: ") for line in out.splitlines() if line.startswith("#")] == lines
    assert main(["to", "deepspeed", str(plan)]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["zero_optimization"] == {"stage": 2}
    assert "not said: shards 4: " in err
    assert "priced for PyTorch FSDP2: plan --for deepspeed prices what this runs" in err


def test_every_framework_takes_every_plan(plan: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for framework in DIALECTS:
        assert main(["to", framework, str(plan)]) == 0
        assert capfd.readouterr().out
    assert main(["to", "colossal", str(plan)]) == 2
    assert "invalid choice" in capfd.readouterr().err
    assert set(WRITTEN) == {*DIALECTS, "transformers"}


def of_llama(path: Path, pins: dict[str, str]) -> None:
    sizes = ["hidden_size=64", "intermediate_size=128", "num_hidden_layers=2", "num_attention_heads=4"]
    pinned = [word for key, value in pins.items() for word in ("--pin", f"{key}={value}")]
    words = ["plan", "hf:llama", "--set", *sizes, "vocab_size=256", "--seq", "32", "--cluster", "dgx-h100"]
    assert main([*words, "--devices", "2", "--global-batch", "4", "--pin", "tp=2", *pinned, "-o", str(path)]) == 0


def test_a_tp_plan_of_transformers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    layers, path = "model.layers.*", tmp_path / "plan.json"
    columns = [f"{layers}.self_attn.{n}_proj" for n in "qkv"] + [f"{layers}.mlp.{n}_proj" for n in ("gate", "up")]
    rows = [f"{layers}.self_attn.o_proj", f"{layers}.mlp.down_proj"]
    pins = {f"{name}.weight": "shard:0" for name in [*columns, "lm_head", "model.embed_tokens"]}
    of_llama(path, pins | {f"{name}.weight": "shard:1" for name in rows})
    capfd.readouterr()
    assert main(["to", "transformers", str(path)]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found == {
        **dict.fromkeys(columns, "colwise"), **dict.fromkeys(rows, "rowwise"), "lm_head": "colwise_gather_output",
        "model.embed_tokens": "embedding_rowwise",
    }  # fmt: skip
    assert set(found.values()) <= set(ALL_PARALLEL_STYLES.keys())


def test_a_plan_that_divides_no_weight_has_no_tp_plan(plan: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["to", "transformers", str(plan)]) == 2
    assert "--pin tp=2" in capfd.readouterr().err


def test_a_plan_that_is_none_is_one_line(plan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    document = json.loads(plan.read_text())
    document["decisions"]["recompute"] = "some"
    (tmp_path / "edited.json").write_text(json.dumps(document))
    assert main(["to", "fsdp", str(tmp_path / "edited.json")]) == 2
    assert "recompute must be one of" in capfd.readouterr().err
