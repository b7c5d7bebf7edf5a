"""torchtitan: the TOML of its releases 0.1.0 to 0.2.2; later ones are configured in Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from partitioner.errors import InputError
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, NO_RECOMPUTE, OPERATORS
from partitioner.precision import BRAIN, SINGLE
from partitioner.schedule.tables import PLAIN, SCHEDULES, Schedule
from tools.dialects.configuration import Configuration
from tools.dialects.dialect import Dialect, Row, Told, Values, cuts, number, one_of, switch, whole, word
from tools.dialects.documents import TOML


def _named(wanted: Callable[[Schedule], bool]) -> str:
    return next(row.name for row in SCHEDULES.values() if wanted(row))


SCHEDULE_WORDS = {
    "1F1B": PLAIN,
    "GPipe": _named(lambda row: row.forwards_first),
    "Interleaved1F1B": _named(lambda row: row.in_rounds),
    "ZBVZeroBubble": _named(lambda row: row.defers_weights and row.most_stages == 2),
}
_P = "parallelism."
_REPLICAS, _SHARDS = f"{_P}data_parallel_replicate_degree", f"{_P}data_parallel_shard_degree"
_RESHARD = f"{_P}fsdp_reshard_after_forward"
_SCHEDULE, _PER_STAGE = f"{_P}pipeline_parallel_schedule", f"{_P}pipeline_parallel_layers_per_stage"
_LESS = tuple(f"{_P}pipeline_parallel_{end}_stage_less_layers" for end in ("first", "last"))
_PARTS, _SIZE = f"{_P}module_fqns_per_model_part", f"{_P}pipeline_parallel_microbatch_size"
_LOCAL, _GLOBAL = "training.local_batch_size", "training.global_batch_size"
_MODE, _OPTION = "activation_checkpoint.mode", "activation_checkpoint.selective_ac_option"
_DTYPE, _CONVERTERS = ("training.dtype", "training.mixed_precision_param"), "model.converters"
_PRODUCTS = {"quantize.linear.float8": "fp8", "float8": "fp8", "quantize.linear.mx": "mxfp8", "mx": "mxfp8"}


def _read_data(values: Values) -> Values:
    replicas = whole(_REPLICAS, values.get(_REPLICAS, 1))
    shards = whole(_SHARDS, values.get(_SHARDS, -1), least=-1)
    if shards == 0:
        raise InputError(f"{_SHARDS} must be -1 or a positive whole number, it is 0")
    cut = {"divided": shards != 1}
    return {"replicas": replicas, "data": replicas * shards, "cut": cut} if shards > 0 else {"replicas": replicas}


def _write_data(asked: Configuration) -> Values:
    if asked.zero or asked.data is None:
        replicas = asked.replicas or 1
        return {_REPLICAS: replicas, _SHARDS: (asked.data or -replicas) // replicas}
    return {_REPLICAS: asked.data, _SHARDS: 1}


def _read_reshard(values: Values) -> Values:
    zero = one_of(_RESHARD, values[_RESHARD], {"default": None, "always": 3, "never": 2})
    return {} if zero is None else {"zero": zero}


def _write_reshard(asked: Configuration) -> Values:
    return {_RESHARD: {3: "always", 2: "never"}.get(asked.zero or 0)}


def _read_stages(values: Values) -> Values:
    cut = {key: whole(key, values[key], least=int(key not in _LESS)) for key in (*_LESS, _PER_STAGE) if key in values}
    parts = values.get(_PARTS)
    if parts is None:
        return {"cut": cut}
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        raise InputError(f"{_PARTS} must be a list of lists of names")
    return {"stages": tuple(sum(str(name).startswith("layers.") for name in part) for part in parts), "cut": cut}


def _write_stages(asked: Configuration) -> Values:
    if (asked.pipeline or 1) == 1:
        return {}
    even = dict.fromkeys(_LESS, 0)
    if asked.stages is None:
        many = (asked.pipeline or 1) * (asked.virtual or 1)
        return even | {_PER_STAGE: asked.layers // many if asked.layers and (asked.virtual or 1) > 2 else None}
    names, start = list[list[str]](), 0
    for n in asked.stages:
        names.append([f"layers.{k}" for k in range(start, start + n)])
        start += n
    return {_PARTS: [["tok_embeddings", *names[0]], *names[1:-1], [*names[-1], "norm", "output"]]}


def _read_global(values: Values) -> Values:
    samples = whole(_GLOBAL, values[_GLOBAL], least=-1)
    if samples == 0:
        raise InputError(f"{_GLOBAL} must be -1 or a positive whole number, it is 0")
    return {"global_batch": samples} if samples > 0 else {}


def _write_local(asked: Configuration) -> Values:
    if (asked.pipeline or 1) == 1:
        return {_LOCAL: asked.micro_batch}
    return {_LOCAL: (asked.micro_batch or 1) * (asked.micro_batches or 1), _SIZE: asked.micro_batch}


def _read_recompute(values: Values) -> Values:
    modes = {"none": NO_RECOMPUTE, "full": FULL_RECOMPUTE, "selective": OPERATORS}
    mode, option = one_of(_MODE, values.get(_MODE, "selective"), modes), str(values.get(_OPTION, "2"))
    if mode != OPERATORS or option == "op":
        return {"recompute": mode}
    return {"recompute": FULL_RECOMPUTE, "cut": {_OPTION: whole(_OPTION, option)}}


def _write_recompute(asked: Configuration) -> Values:
    if asked.recompute == OPERATORS:
        return {_MODE: "selective", _OPTION: "op"}
    modes = {NO_RECOMPUTE: "none", FULL_RECOMPUTE: "full"}
    many = (asked.pipeline or 1) * (asked.virtual or 1)
    if asked.recompute == FULL_RECOMPUTE and asked.recomputed and asked.layers and asked.stages is None:
        each = asked.layers // many
        every = next((n for n in range(2, each + 1) if each // n == asked.recomputed), None)
        return {_MODE: "selective", _OPTION: str(every)} if every else {_MODE: "full"}
    return {_MODE: modes.get(asked.recompute or "")}


def _read_precision(values: Values) -> Values:
    kinds = {BRAIN: "bf16", SINGLE: "fp32"}
    own = one_of(_DTYPE[0], values.get(_DTYPE[0], SINGLE), kinds)
    precision = "bf16-pure" if own == "bf16" else one_of(_DTYPE[1], values.get(_DTYPE[1], BRAIN), kinds)
    converters: Any = values.get(_CONVERTERS, [])
    for name in converters if isinstance(converters, list) else [converters]:
        products = one_of(_CONVERTERS, name, _PRODUCTS)
        if precision != "bf16":
            raise InputError(f"{_CONVERTERS}={name} beside {precision}: a plan has it beside bfloat16")
        precision = products
    return {"precision": precision, "gradients": "" if precision == "bf16-pure" else SINGLE}


def _write_precision(asked: Configuration) -> Values:
    name = next((word for word, preset in _PRODUCTS.items() if preset == asked.precision), None)
    if name is not None:
        return {_CONVERTERS: [name], _DTYPE[1]: BRAIN}
    return {"bf16": {_DTYPE[1]: BRAIN}, "fp32": {_DTYPE[1]: SINGLE}, "bf16-pure": {_DTYPE[0]: BRAIN}}.get(
        asked.cast or "", {}
    )


def _settle(found: Configuration, blocks: int | None) -> Configuration:
    pipeline, tensor, blocks = found.pipeline or 1, found.tensor or 1, blocks or found.layers
    found = _scheduled(replace(found, pipeline=pipeline, tensor=tensor, context=found.context or 1), blocks)
    found = _batched(found)
    zero = found.zero or (3 if pipeline == 1 else 2)
    if not found.cut.get("divided", True) and found.context == 1:
        zero = 0
    found = replace(
        found, zero=zero, replicas=found.replicas or 1, sequence_parallel=tensor > 1,
        overlap_tensor=bool(found.overlap_tensor), fused=bool(found.fused),
        precision=found.precision or "bf16", gradients=SINGLE if found.gradients is None else found.gradients,
    )  # fmt: skip
    if found.recompute is None:
        found = replace(found, recompute=FULL_RECOMPUTE, cut={**found.cut, _OPTION: 2})
    return _every(found, found.cut.get(_OPTION, 1), blocks)


def _scheduled(found: Configuration, blocks: int | None) -> Configuration:
    pipeline = found.pipeline or 1
    if pipeline == 1:
        return replace(found, schedule=PLAIN, virtual=1, stages=None)
    kind, before, after = found.schedule or PLAIN, *(found.cut.get(key, 1) for key in _LESS)
    virtual = SCHEDULES[kind].fewest_stages
    stages, each = found.stages, found.cut.get(_PER_STAGE)
    if stages is not None:
        virtual = _a_rank(len(stages), pipeline, _PARTS)
    elif each and blocks:
        virtual = _a_rank(-(-(blocks + before + after) // each), pipeline, _PER_STAGE)
    if stages is None and blocks:
        many = pipeline * virtual
        if many > blocks:
            raise InputError(f"{blocks} layers are too few for {many:,} stages: lower {_P}pipeline_parallel_degree")
        each, more = divmod(blocks + before + after, many)
        rows = [each + (n < more) for n in range(many)]
        rows[0], rows[-1] = rows[0] - before, rows[-1] - after
        if min(rows) < 1:
            raise InputError(f"{_LESS[0]} and last leave a stage of {many} without a layer: lower them")
        stages = tuple(rows) if len(set(rows)) > 1 else None
    return replace(found, schedule=kind, virtual=virtual, stages=stages)


def _a_rank(stages: int, pipeline: int, key: str) -> int:
    """Stages a rank, of all; raises InputError as torchtitan does where ranks do not divide them."""
    if not stages or stages % pipeline:
        raise InputError(f"{key} makes {stages} stages, which {pipeline} pipeline ranks do not divide: change it")
    return stages // pipeline


def _batched(found: Configuration) -> Configuration:
    """Of the samples that a data rank takes at once, those of a micro-batch: all of them, but in a pipeline."""
    local = found.cut.get(_LOCAL, 8)
    if found.pipeline == 1:
        return replace(found, micro_batch=local, micro_batches=None if found.global_batch else 1)
    size = found.cut.get(_SIZE, 1)
    if local % size:
        raise InputError(f"{_LOCAL}={local} is no multiple of {_SIZE}={size}: take one")
    many = None if found.global_batch else local // size
    return replace(found, micro_batch=size, micro_batches=many, local_batch=local)


def _every(found: Configuration, every: int, blocks: int | None) -> Configuration:
    """Where each so many-th block alone is recomputed."""
    if every == 1 or blocks is None:
        return found
    many = (found.pipeline or 1) * (found.virtual or 1)
    each = {n // every for n in found.stages or (blocks // many,)}
    if len(each) > 1:
        words = f"{_OPTION}={every} recomputes unlike numbers of blocks in unlike stages"
        raise InputError(f"{words}: take op, or mode full")
    count = each.pop()
    return replace(found, recomputed=count or None, recompute=FULL_RECOMPUTE if count else NO_RECOMPUTE)


TORCHTITAN = Dialect(
    name="torchtitan", software="torchtitan", form=TOML, settle=_settle,
    rows=(
        Row((_REPLICAS, _SHARDS), ("data", "replicas"), _read_data, _write_data),
        Row((_RESHARD,), ("zero",), _read_reshard, _write_reshard),
        number(f"{_P}tensor_parallel_degree", "tensor"),
        number(f"{_P}pipeline_parallel_degree", "pipeline"),
        number(f"{_P}context_parallel_degree", "context"),
        number(f"{_P}expert_parallel_degree", "expert"),
        word(_SCHEDULE, "schedule", SCHEDULE_WORDS),
        Row((_PARTS, _PER_STAGE, *_LESS), ("stages", "virtual"), _read_stages, _write_stages),
        Row((_LOCAL, _SIZE), ("micro_batch", "micro_batches", "local_batch"), cuts, _write_local),
        Row((_GLOBAL,), ("global_batch",), _read_global, lambda asked: {_GLOBAL: asked.global_batch}),
        number("training.seq_len", "seq"),
        switch(f"{_P}enable_async_tensor_parallel", "overlap_tensor"),
        switch("compile.enable", "fused"),
        Row((_MODE, _OPTION), ("recompute", "recomputed"), _read_recompute, _write_recompute),
        Row((*_DTYPE, _CONVERTERS), ("precision", "gradients"), _read_precision, _write_precision),
    ),
    aliases={
        "training.batch_size": _LOCAL, "training.compile": "compile.enable", "training.tensor_parallel_degree":
        f"{_P}tensor_parallel_degree",
        "training.data_parallel_shard_degree": _SHARDS, "training.data_parallel_replicate_degree": _REPLICAS,
        "experimental.pipeline_parallel_degree": f"{_P}pipeline_parallel_degree",
        "experimental.pipeline_parallel_schedule": _SCHEDULE,
        "experimental.context_parallel_degree": f"{_P}context_parallel_degree",
    },
    told=(
        Told("training.enable_cpu_offload", "a plan keeps all on the device: set it to false"),
        Told("memory_estimation.enable", "", (True, False), refuse=False),
        Told(f"{_P}pipeline_parallel_schedule_csv", "a plan has a schedule by name: leave it out", ("",)),
        Told(f"{_P}expert_tensor_parallel_degree", "plans have no expert parallelism yet: set it to 1"),
        Told(f"{_P}disable_loss_parallel", "a plan divides the loss where that pays", refuse=False),
        Told("*.recipe_name", "products are taken to have one scale a tensor", ("tensorwise", "mxfp8_cublas"),
             refuse=False),
        Told("optimizer.name", "memory is that of Adam", ("AdamW", "Adam"), refuse=False),
        Told("optimizer.early_step_in_backward", "a plan steps after backward: set it to false"),
        Told("fault_tolerance.enable", "a plan is of one replica group: set it to false"),
    ),
    unread=(
        "job.*", "profiling.*", "metrics.*", "model.*", "optimizer.*", "lr_scheduler.*", "checkpoint.*", "comm.*",
        "validation.*", "debug.*", "experimental.*", "quantize.*", "float8.*", "mx.*", "compile.*", "fault_tolerance.*",
        "memory_estimation.*", "training.steps", "training.dataset*", "training.max_norm", "training.gc_*",
        "training.seed", "training.deterministic", "training.warmup_steps", "training.mixed_precision_reduce",
        "training.dataloader.*", f"{_P}context_parallel_rotate_method", f"{_P}context_parallel_load_balancer",
        f"{_P}enable_compiled_autograd", f"{_P}pipeline_parallel_expert_parallel_overlap",
        f"{_P}expert_parallel_comm_backend", f"{_P}expert_parallel_a2a_impl", "activation_checkpoint.*",
    ),
)  # fmt: skip
