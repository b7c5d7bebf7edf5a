"""FSDP: the YAML with which accelerate launches (1.15): FSDP2's keys, and the first FSDP's where a file has them."""

from __future__ import annotations

from dataclasses import replace

from partitioner.errors import InputError
from partitioner.hardware.checked_table import cut
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, NO_RECOMPUTE
from partitioner.schedule.tables import PLAIN
from tools.dialects.configuration import Configuration
from tools.dialects.dialect import Dialect, Row, Told, Values, number, one_of, switch, whole, yes
from tools.dialects.documents import YAML

_F, _P = "fsdp_config.fsdp_", "parallelism_config.parallelism_config_"
_VERSION, _RESHARD, _STRATEGY = f"{_F}version", f"{_F}reshard_after_forward", f"{_F}sharding_strategy"
_WAYS = {  # of the first FSDP: ZeRO's stage, and whether each node holds all
    "FULL_SHARD": (3, False), "SHARD_GRAD_OP": (2, False), "NO_SHARD": (0, False), "HYBRID_SHARD": (3, True),
    "HYBRID_SHARD_ZERO2": (2, True),
}  # fmt: skip
_REPLICATED, _SHARDED = f"{_P}dp_replicate_size", f"{_P}dp_shard_size"
_RANKS, _NODES = "num_processes", "num_machines"


def _read_zero(values: Values) -> Values:
    version = one_of(_VERSION, values.get(_VERSION, 1), {"1": 1, "2": 2})
    key = _RESHARD if _RESHARD in values or _STRATEGY not in values else _STRATEGY
    value = values.get(key, "FULL_SHARD" if version == 1 else True)
    if version == 2:
        return {"zero": 3 if yes(key, value) else 2}
    ways = _WAYS | {str(n): way for n, way in enumerate(_WAYS.values(), 1)}
    name = str(value).upper()
    if name not in ways:
        raise InputError(f"{key}={cut(name)} is none of {', '.join(_WAYS)}: choose one, or set {_VERSION} to 2")
    zero, hybrid = ways[name]
    return {"zero": zero, "cut": {"hybrid": hybrid}}


def _write_zero(asked: Configuration) -> Values:
    return {_VERSION: 2, _RESHARD: {3: True, 2: False}.get(asked.zero or 0)}


def _read_groups(values: Values) -> Values:
    replicas, shards = (whole(key, values.get(key, 1)) for key in (_REPLICATED, _SHARDED))
    return {"data": replicas * shards, "replicas": replicas}


def _write_groups(asked: Configuration) -> Values:
    if (asked.replicas or 1) == 1:
        return {}
    return {_REPLICATED: asked.replicas, _SHARDED: asked.shards}


def _read_devices(values: Values) -> Values:
    nodes = whole(_NODES, values.get(_NODES, 1))
    if _RANKS not in values or values[_RANKS] == -1:
        return {}
    ranks = whole(_RANKS, values[_RANKS])
    if ranks % nodes:
        raise InputError(f"{_RANKS}={ranks} does not divide over {_NODES}={nodes}: take {nodes * (ranks // nodes + 1)}")
    return {"devices": ranks, "node_devices": ranks // nodes}


def _write_devices(asked: Configuration) -> Values:
    nodes = -(-asked.devices // asked.node_devices) if asked.devices and asked.node_devices else None
    return {_RANKS: asked.devices, _NODES: nodes}


_MIXED = {"bf16": "bf16", "fp16": "fp16", "no": "fp32", "fp8": "fp8"}


def _read_precision(values: Values) -> Values:
    word = values["mixed_precision"]
    return {"precision": one_of("mixed_precision", "no" if word is False else word, _MIXED)}  # YAML's no is false


def _write_precision(asked: Configuration) -> Values:
    words = {preset: word for word, preset in _MIXED.items()}
    return {"mixed_precision": words.get(asked.precision or "", words.get(asked.cast or ""))}


def _settle(found: Configuration, blocks: int | None) -> Configuration:
    shards = found.node_devices if found.cut.get("hybrid") else found.shards
    return replace(
        found, pipeline=1, context=found.context or 1, tensor=found.tensor or 1, schedule=PLAIN, virtual=1,
        precision=found.precision or "fp32", recompute=found.recompute or NO_RECOMPUTE, shards=shards,
        zero=3 if found.zero is None else found.zero, sequence_parallel=False,
    )  # fmt: skip


FSDP = Dialect(
    name="fsdp", software="fsdp", form=YAML, settle=_settle,
    rows=(
        Row((_VERSION, _RESHARD, _STRATEGY), ("zero",), _read_zero, _write_zero),
        Row((_REPLICATED, _SHARDED), ("data", "shards", "replicas"), _read_groups, _write_groups),
        Row((_RANKS, _NODES), ("devices", "node_devices"), _read_devices, _write_devices),
        number(f"{_P}tp_size", "tensor"),
        number(f"{_P}cp_size", "context", f"{_P}sp_size"),
        switch(f"{_F}activation_checkpointing", "recompute", FULL_RECOMPUTE, NO_RECOMPUTE),
        Row(("mixed_precision",), ("precision",), _read_precision, _write_precision),
    ),
    heading={
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "machine_rank": 0,
        "main_training_function": "main", "use_cpu": False, "debug": False,
        f"{_F}auto_wrap_policy": "TRANSFORMER_BASED_WRAP", f"{_F}state_dict_type": "SHARDED_STATE_DICT",
        f"{_F}offload_params": False, f"{_F}cpu_ram_efficient_loading": True,
    },
    elsewhere={
        "micro_batch": "the training script, per_device_train_batch_size of a Trainer",
        "micro_batches": "the training script, gradient_accumulation_steps",
        "global_batch": "the training script",
        "seq": "the batches that the training script makes",
        "gradients": "the training script, reduce_dtype of MixedPrecisionPolicy",
    },
    told=(
        Told("distributed_type", "only FSDP is read: of DeepSpeed give the JSON itself", ("FSDP",)),
        Told(f"{_F}offload_params", "a plan keeps all on the device: set it to false"),
        Told(f"{_F}activation_cpu_offload", "a plan keeps all on the device: set it to false"),
        Told(f"{_F}auto_wrap_policy", "a plan wraps each block", ("TRANSFORMER_BASED_WRAP",), refuse=False),
        Told("use_cpu", "a plan is of the cluster's devices", refuse=False),
        Told("dynamo_config.dynamo_backend", "priced as without it", ("NO", "no"), refuse=False),
        Told("deepspeed_config.*", "of DeepSpeed give the JSON itself", ()),
        Told("megatron_lm_config.*", "of Megatron-LM give its flags", ()),
    ),
    unread=(
        "compute_environment", "debug", "downcast_bf16", "enable_cpu_affinity", "machine_rank", "main_*",
        "rdzv_backend",
        "same_network", "tpu_*", "gpu_ids", "fsdp_config.*", "dynamo_config.*", "fp8_config.*", "mpirun_config.*",
        f"{_P}*_comm_strategy", f"{_P}*_backend", "command_file", "commands", "parallelism_config.*",
    ),
)  # fmt: skip
