"""What ``to`` writes, read by the frameworks' own parsers, of the releases in pyproject.toml, each in a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.main import main

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(300)]
MODEL = ["--set", "layers=8", "hidden=128", "heads=4", "kv_heads=2", "ffn=256", "vocab=131072", "--seq", "128"]

TORCHTITAN = """
import json, sys
from dataclasses import asdict
from torchtitan.config import ConfigManager
print(json.dumps(asdict(ConfigManager().parse_args(["--job.config_file", sys.argv[1]]))))
"""
DEEPSPEED = """
import json, sys
from types import SimpleNamespace
from deepspeed.runtime import config
from deepspeed.runtime.config import DeepSpeedConfig
data_ranks = int(sys.argv[2])
config.dist = SimpleNamespace(get_rank=lambda: 0)  # no ranks are started
read = DeepSpeedConfig(sys.argv[1], mpu=SimpleNamespace(get_data_parallel_world_size=lambda: data_ranks))
print(json.dumps({
    "batch": [read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps],
    "zero": read.zero_config.stage, "bf16": read.bfloat16_config.enabled, "fp16": read.float16_config.enabled,
    "gradients": read.grad_accum_dtype,
}))
"""
# megatron-core holds what most keys end in, and checks them as its models are made; the parser of flags is in the
# repository alone: what has no such field is listed
MEGATRON = """
import json, sys
from dataclasses import fields
import torch
import yaml
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig
text, said = open(sys.argv[1]).read(), {}
if text.startswith("--"):
    for key, *words in map(str.split, text.splitlines()):
        said[key.removeprefix("--").replace("-", "_")] = yaml.safe_load(words[0]) if words else True
else:
    tables = yaml.safe_load(text)
    said = {k: v for name in ("model", "train", "ddp") for k, v in tables[name].items()}
made, others = {}, dict(said)
for kind in (TransformerConfig, DistributedDataParallelConfig, OptimizerConfig):
    own = {f.name for f in fields(kind)} & set(said)
    more = {"pipeline_dtype": torch.bfloat16} if kind is TransformerConfig else {}
    of = kind(**{key: said[key] for key in own}, **more)
    made |= {key: str(getattr(of, key)) for key in own}
    others = {key: value for key, value in others.items() if key not in own}
print(json.dumps({"read": made, "others": sorted(others)}))
"""
LIKE_MEGATRON = {"attention.qkv": 0, "attention.out": 1, "up": 0, "down": 1}
NOT_OF_THE_CORE = {
    "num_virtual_stages_per_pipeline_rank", "micro_batch_size", "global_batch_size", "seq_length", "swiglu",
    "group_query_attention", "position_embedding_type", "disable_bias_linear", "untie_embeddings_and_output_weights",
    "share_embeddings_and_output_weights", "vocab_size",
}  # fmt: skip


def written(framework: str, software: str, pins: list[str], folder: Path, *words: str) -> Path:
    plan, config = folder / "plan.json", folder / "config"
    pinned = [word for pin in pins for word in ("--pin", pin)]
    asked = ["plan", "plain:decoder", *MODEL, "--cluster", "dgx-h100", "--for", software, "--global-batch", "32"]
    assert main([*asked, *words, *pinned, "-o", str(plan)]) == 0
    assert main(["to", framework, str(plan), "-o", str(config)]) == 0
    assert str(plan) not in config.read_text()
    return config


def read(program: str, config: Path, *more: str) -> Any:
    """What a framework's own parser made of a file: the last line that the program prints."""
    words = [sys.executable, "-W", "ignore", "-c", program, str(config), *more]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_torchtitan(tmp_path: Path) -> None:
    pins = ["tp=2", "pp=2", "schedule=zbv", "zero=3", "recompute=full", "micro_batch=2"]
    found = read(TORCHTITAN, written("torchtitan", "torchtitan", pins, tmp_path, "--nodes", "2"))
    own, training = found["parallelism"], found["training"]
    assert (own["tensor_parallel_degree"], own["pipeline_parallel_degree"]) == (2, 2)
    assert (own["data_parallel_shard_degree"], own["data_parallel_replicate_degree"]) == (4, 1)
    assert (own["pipeline_parallel_schedule"], own["pipeline_parallel_microbatch_size"]) == ("ZBVZeroBubble", 2)
    assert own["fsdp_reshard_after_forward"] == "always"
    assert found["activation_checkpoint"]["mode"] == "full"
    assert (training["local_batch_size"], training["global_batch_size"], training["seq_len"]) == (8, 32, 128)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_deepspeed(zero: int, tmp_path: Path) -> None:
    found = read(DEEPSPEED, written("deepspeed", "deepspeed", ["micro_batch=2", f"zero={zero}"], tmp_path), "8")
    assert found["batch"] == [32, 2, 2]
    assert (found["zero"], found["bf16"], found["fp16"], found["gradients"]) == (zero, True, False, "bf16")


def test_deepspeed_refuses_another_number_of_ranks(tmp_path: Path) -> None:
    config = written("deepspeed", "deepspeed", ["micro_batch=2"], tmp_path)
    with pytest.raises(AssertionError, match="train_batch_size is not equal"):
        read(DEEPSPEED, config, "4")


@pytest.mark.parametrize(("framework", "software"), [("megatron", "megatron"), ("bridge", "megatron-bridge")])
def test_megatron_core(framework: str, software: str, tmp_path: Path) -> None:
    divided = [f"blocks.*.{name}.weight=shard:{n}" for name, n in LIKE_MEGATRON.items()]
    pins = ["tp=2", "boundary=sharded", "pp=2", "virtual=2", "recompute=full", "recomputed=1", "zero=1"]
    found = read(MEGATRON, written(framework, software, [*pins, "micro_batch=1", *divided], tmp_path))
    assert set(found["others"]) <= NOT_OF_THE_CORE
    made = found["read"]
    assert (made["tensor_model_parallel_size"], made["pipeline_model_parallel_size"]) == ("2", "2")
    assert [made[f"recompute_{key}"] for key in ("granularity", "method", "num_layers")] == ["full", "block", "1"]
    assert [made[key] for key in ("sequence_parallel", "num_layers", "num_query_groups")] == ["True", "8", "2"]
    assert [made[f"overlap_{key}"] for key in ("grad_reduce", "param_gather")] == ["True", "True"]
