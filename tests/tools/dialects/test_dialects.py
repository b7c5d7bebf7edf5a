"""Each framework's keys are read as its own code means them, and written so that they read back."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from partitioner.errors import InputError
from partitioner.schedule.tables import PLAIN, SCHEDULES
from partitioner.software import frameworks
from tools.configs.arguments import READ
from tools.dialects.configuration import Configuration
from tools.dialects.documents import JSON, TOML, YAML
from tools.dialects.known import DIALECTS, recognised

ROUNDS = next(row.name for row in SCHEDULES.values() if row.in_rounds)
ALL_FIRST = next(row.name for row in SCHEDULES.values() if row.forwards_first)


def settled(name: str, text: str, blocks: int | None = None) -> Configuration:
    dialect = DIALECTS[name]
    return dialect.settle(dialect.read(text, "file").configuration, blocks)


def test_all_are_frameworks_that_plans_are_made_for() -> None:
    assert tuple(DIALECTS) == READ
    assert {row.software for row in DIALECTS.values()} <= set(frameworks())


def test_rows_name_fields_and_share_no_key() -> None:
    known = {f.name for f in fields(Configuration)}
    for dialect in DIALECTS.values():
        keys = [key for row in dialect.rows for key in row.keys]
        assert len(keys) == len(set(keys)), dialect.name
        assert {field for row in dialect.rows for field in row.fields} <= known
        assert set(dict(dialect.aliases).values()) <= set(keys), dialect.name


MEGATRON = "--num-layers 24 --hidden-size 1024 --num-attention-heads 16 --pipeline-model-parallel-size 4 "


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", {"virtual": 1, "schedule": PLAIN, "recompute": "none", "zero": 0, "precision": "fp32", "ffn": 4096,
              "tied": True, "gated": False, "kv_heads": 16, "stages": None}),
        ("--num-layers-per-virtual-pipeline-stage 3", {"virtual": 2, "schedule": ROUNDS}),
        ("--num-virtual-stages-per-pipeline-rank 3", {"virtual": 3, "schedule": ROUNDS}),
        ("--decoder-first-pipeline-num-layers 4 --decoder-last-pipeline-num-layers 4", {"stages": (4, 8, 8, 4)}),
        ("--account-for-embedding-in-pipeline-split --num-layers 23", {"stages": (5, 6, 6, 6)}),
        ("--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split --num-layers 6 "
         "--num-virtual-stages-per-pipeline-rank 2", {"stages": (0, 1, 1, 1, 1, 1, 1, 0)}),
        ("--pipeline-model-parallel-layout 'Et*6|(tt|)*3t*12L' --pipeline-model-parallel-size 5",
         {"stages": (6, 2, 2, 2, 12), "virtual": 1}),
        ("--recompute-activations", {"recompute": "selective", "recomputed": None}),
        ("--recompute-granularity selective --recompute-modules mlp core_attn", {"recompute": "selective+mlp"}),
        ("--recompute-granularity selective --recompute-modules core_attn", {"recompute": "selective"}),
        ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
         {"recompute": "full", "recomputed": None}),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 2",
         {"recompute": "full", "recomputed": 2}),
        ("--bf16", {"precision": "bf16", "gradients": "float32"}),
        ("--bf16 --grad-reduce-in-bf16", {"precision": "bf16", "gradients": ""}),
        ("--fp16", {"precision": "fp16", "gradients": ""}),
        ("--bf16 --fp8-format hybrid", {"precision": "fp8"}),
        ("--bf16 --fp8-format e4m3 --fp8-recipe mxfp8", {"precision": "mxfp8"}),
        ("--bf16 --fp8-format e4m3 --fp8-recipe blockwise", {"precision": "fp8_block"}),
        ("--use-distributed-optimizer", {"zero": 1}),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads", {"zero": 2}),
        ("--num-query-groups 4", {"kv_heads": 16}),  # as Megatron: without --group-query-attention it says nothing
        ("--group-query-attention --num-query-groups 4", {"kv_heads": 4}),
        ("--swiglu", {"gated": True, "ffn": 2688}),
        ("--vocab-size 50257 --tensor-model-parallel-size 8", {"vocab": 51200}),
        ("--vocab-size 50257 --make-vocab-size-divisible-by 1", {"vocab": 50257}),
        ("--untie-embeddings-and-output-weights", {"tied": False}),
    ],
)  # fmt: skip
def test_megatron_means(flags: str, expected: dict[str, object]) -> None:
    found = settled("megatron", MEGATRON + flags)
    assert {field: getattr(found, field) for field in expected} == expected


EVEN = "pipeline_parallel_first_stage_less_layers = 0\npipeline_parallel_last_stage_less_layers = 0"
TITAN = "[parallelism]\npipeline_parallel_degree = {pp}\n{more}\n[activation_checkpoint]\n{again}\n[training]\n{train}"


@pytest.mark.parametrize(
    ("pp", "more", "again", "train", "expected"),
    [
        (1, "", "", "local_batch_size = 4", {"zero": 3, "micro_batch": 4, "recompute": "full", "recomputed": 16}),
        (1, "", 'mode = "none"', "", {"recompute": "none", "micro_batch": 8}),
        (1, "", 'mode = "selective"\nselective_ac_option = "op"', "", {"recompute": "operators"}),
        (1, 'fsdp_reshard_after_forward = "never"', "", "", {"zero": 2}),
        (1, "data_parallel_shard_degree = 1\ndata_parallel_replicate_degree = 4", "", "", {"zero": 0, "data": 4}),
        (1, "data_parallel_shard_degree = 2\ndata_parallel_replicate_degree = 4", "", "",
         {"data": 8, "replicas": 4, "zero": 3}),
        (4, "", 'mode = "full"', "local_batch_size = 8",
         {"zero": 2, "micro_batch": 1, "micro_batches": 8, "stages": (8, 9, 8, 7), "virtual": 1}),
        (4, EVEN, 'mode = "full"', "", {"stages": None}),
        (2, 'pipeline_parallel_schedule = "Interleaved1F1B"', 'mode = "full"', "",
         {"schedule": ROUNDS, "virtual": 2, "stages": (8, 9, 8, 7)}),
        (2, 'pipeline_parallel_schedule = "GPipe"', 'mode = "full"', "", {"schedule": ALL_FIRST, "virtual": 1}),
        (2, 'module_fqns_per_model_part = [["tok_embeddings", "layers.0"], ["layers.1", "layers.2", "norm"]]',
         'mode = "full"', "", {"stages": (1, 2)}),
        (1, "tensor_parallel_degree = 2", "", 'dtype = "bfloat16"',
         {"precision": "bf16-pure", "sequence_parallel": True}),
    ],
)  # fmt: skip
def test_torchtitan_means(pp: int, more: str, again: str, train: str, expected: dict[str, object]) -> None:
    found = settled("torchtitan", TITAN.format(pp=pp, more=more, again=again, train=train), 32)
    assert {field: getattr(found, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("deepspeed", '{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}, "train_batch_size": 64}',
         {"zero": 2, "precision": "bf16", "global_batch": 64, "gradients": None, "recompute": None}),
        ("deepspeed", '{"train_micro_batch_size_per_gpu": "auto", "data_types": {"grad_accum_dtype": "fp32"}}',
         {"micro_batch": None, "gradients": "float32", "precision": "fp32"}),
        ("deepspeed", '{"tensor_parallel": {"autotp_size": 4}}', {"tensor": 4}),
        ("fsdp", "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n  fsdp_reshard_after_forward: false\n",
         {"zero": 2, "recompute": "none"}),
        ("fsdp", "fsdp_config:\n  fsdp_sharding_strategy: SHARD_GRAD_OP\n", {"zero": 2}),
        ("fsdp", "fsdp_config:\n  fsdp_sharding_strategy: 4\nnum_processes: 16\nnum_machines: 2\n",
         {"zero": 3, "shards": 8, "devices": 16}),
        ("fsdp", "fsdp_config:\n  fsdp_activation_checkpointing: true\nmixed_precision: bf16\n",
         {"zero": 3, "recompute": "full", "precision": "bf16"}),
        ("nanotron", "parallelism: {dp: 2, pp: 2, tp: 4, tp_mode: REDUCE_SCATTER}\nmodel: {dtype: bfloat16}\n",
         {"devices": 16, "schedule": ALL_FIRST, "sequence_parallel": True, "precision": "bf16", "zero": 0}),
        ("nanotron", "optimizer: {accumulate_grad_in_fp32: false, zero_stage: 1}\nmodel: {dtype: bfloat16}\n",
         {"precision": "bf16-pure", "zero": 1}),
        ("bridge", "model: {tensor_model_parallel_size: 2, virtual_pipeline_model_parallel_size: 3,"
         " pipeline_model_parallel_size: 2}\nmixed_precision: bf16_with_mxfp8_mixed\n",
         {"tensor": 2, "virtual": 3, "precision": "mxfp8"}),
        ("bridge", "trainer: {devices: 8, num_nodes: 4}", {"devices": 32, "node_devices": 8}),
        ("bridge", "ddp: {grad_reduce_in_fp32: false, use_distributed_optimizer: true}\n",
         {"gradients": "", "zero": 1, "precision": "bf16"}),
    ],
)  # fmt: skip
def test_others_mean(name: str, text: str, expected: dict[str, object]) -> None:
    found = settled(name, text)
    assert {field: getattr(found, field) for field in expected} == expected


FULL = Configuration(
    pipeline=4, data=2, context=1, tensor=2, devices=16, node_devices=8, schedule=PLAIN, virtual=1, micro_batch=1,
    micro_batches=8, global_batch=16, zero=1, shards=2, replicas=1, recompute="full", precision="bf16",
    gradients="float32", sequence_parallel=True, seq=4096, layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8,
    vocab=128256, gated=True, tied=False,
)  # fmt: skip


@pytest.mark.parametrize("name", ["megatron", "bridge", "nanotron"])
def test_what_can_be_said_reads_back(name: str) -> None:
    assert DIALECTS[name].untold(FULL, 32) == {}


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("megatron", {"zero": 3}, {"zero": 0}),
        ("megatron", {"recompute": "operators"}, {"recompute": "none"}),
        ("megatron", {"stages": (7, 9, 9, 7)}, {}),
        ("megatron", {"recomputed": 3}, {}),
        ("megatron", {"schedule": ALL_FIRST}, {"schedule": PLAIN}),
        ("megatron", {"replicas": 2, "shards": 1}, {}),
        ("nanotron", {"stages": (7, 9, 9, 7)}, {"stages": None}),
        ("nanotron", {"precision": "fp8"}, {"precision": "bf16"}),
        ("bridge", {"precision": "fp32", "gradients": None}, {}),
    ],
)
def test_what_can_not_be_said_is_found(name: str, asked: dict[str, object], expected: dict[str, object]) -> None:
    assert DIALECTS[name].untold(replace(FULL, **asked), 32) == expected


def test_as_many_stages_as_blocks_are_said_whole() -> None:
    dialect = DIALECTS["megatron"]
    for stages in ((0, *[1] * 126, 0), (*[1, 2] * 63, 1, 1)):
        asked = replace(FULL, pipeline=16, virtual=8, schedule=ROUNDS, layers=sum(stages), stages=stages)
        text = dialect.form.dump(dialect.written(asked), ())
        assert settled("megatron", text, sum(stages)).stages == stages


def test_uneven_stages_are_said_to_torchtitan_by_names() -> None:
    asked = replace(FULL, zero=2, stages=(7, 9, 9, 7))
    dialect = DIALECTS["torchtitan"]
    assert dialect.settle(dialect.reading(dialect.written(asked)).configuration, 32).stages == (7, 9, 9, 7)


def test_several_stages_a_rank_are_said_to_torchtitan() -> None:
    asked = replace(FULL, zero=2, schedule=ROUNDS, virtual=4, hidden=None)
    left = DIALECTS["torchtitan"].untold(asked, 32)
    assert {"virtual", "schedule", "stages"} & set(left) == set()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("megatron", "--tensor-model-parallel-size -8", "positive whole number"),
        ("megatron", "--tensor-model-parallel-size 99999999999999999999", "absurdly large"),
        ("megatron", f"--tensor-model-parallel-size {'9' * 5000}", "absurdly large"),
        ("torchtitan", "parallelism = 1", "parallelism must be a table of keys, it is 1"),
        ("torchtitan", "[parallelism]\npipeline_parallel_layers_per_stage = 0", "positive"),
        ("deepspeed", '{"bf16": true}', "bf16 must be a table"),
        ("deepspeed", '{"zero_optimization": {"offload_param": "cpu"}}', "offload_param must be a table"),
        ("deepspeed", '{"bf16": {"enabled": true}, "fp16": {"enabled": true}}', "both on: drop one"),
        ("bridge", "mixed_precision: {bf16: true, fp16: true}", "both on: drop one"),
        ("fsdp", "fsdp_config: {fsdp_version: 3}", "none of 1, 2"),
        ("fsdp", "num_processes: 5\nnum_machines: 2", "take 6"),
        ("megatron", "--tensor-model-parallel-size ٤", "positive whole number"),
        ("deepspeed", '{"train_batch_size": " 8 "}', "positive whole number"),
        ("deepspeed", '{"train_batch_size": "--8"}', "positive whole number"),
        ("fsdp", f"fsdp_config: {{fsdp_sharding_strategy: '{'9' * 5000}'}}", "none of FULL_SHARD"),
        ("fsdp", f"fsdp_config: {{fsdp_activation_checkpointing: 0x{'f' * 9000}}}", "absurdly large"),
        ("torchtitan", f"[compile]\nenable = 0x{'f' * 9000}", "absurdly large"),
        ("torchtitan", "[training]\nglobal_batch_size = 0", "-1 or a positive"),
        ("megatron", "A=$((4/00))\n--tensor-model-parallel-size $A", "which the file does not set"),
        ("megatron", "A=xx\n" + 21 * "A=$A$A\n" + "--save $A", "variable"),
        ("megatron", "--tensor-model-parallel-size $TP", "which the file does not set"),
        ("megatron", "--tensor-model-parallel-size", "positive whole number"),
        ("megatron", "--bf16 --fp16", "drop one"),
        ("megatron", "--recompute-granularity full", "choose one"),
        ("megatron", "--recompute-granularity selective --recompute-modules moe_act", "moe_act is none of core_attn"),
        ("megatron", "--recompute-granularity selective --recompute-modules layernorm", "leave it out"),
        ("megatron", "--recompute-granularity selective --recompute-modules", "names no modules"),
        ("bridge", "model: {recompute_granularity: selective, recompute_modules: []}", "names no modules"),
        ("bridge", "model: {recompute_granularity: selective, recompute_modules: 5}", "names no modules"),
        ("megatron", "--recompute-granularity full --recompute-method uniform --recompute-num-layers 4", "set it to 1"),
        ("megatron", "--pipeline-model-parallel-layout Ettm|L", "write it as"),
        ("megatron", "--fp16 --fp8-format hybrid", "add --bf16"),
        ("torchtitan", "parallelism = 1\n[parallelism]\n", "no TOML"),
        ("torchtitan", '[parallelism]\npipeline_parallel_schedule = "DualPipeV"', "none of 1F1B"),
        ("torchtitan", "[parallelism]\ndata_parallel_shard_degree = 0", "-1 or a positive"),
        ("deepspeed", '{"zero_optimization": {"stage": 4.5}}', "none of 0, 1, 2, 3"),
        ("deepspeed", '{"zero_optimization": {"stage": 4}}', "none of 0, 1, 2, 3"),
        ("megatron", "--bf16 --fp8-format foo", "fp8-format=foo is none of e4m3, hybrid"),
        ("bridge", "mixed_precision:\n  bf16: true\n  fp8: perhaps", "fp8=perhaps is none of e4m3, hybrid"),
        ("bridge", "trainer:\n  num_nodes: foo\n  devices: 8", "trainer.num_nodes must be a positive whole number"),
        ("deepspeed", '{"bf16": {"enabled": "perhaps"}}', "true or false"),
        ("deepspeed", '["a list"]', "no table of keys"),
        ("deepspeed", "[" * 100000, "no JSON"),
        ("fsdp", "fsdp_config: {fsdp_sharding_strategy: SOME}", "none of FULL_SHARD"),
        ("fsdp", "a: [1", "no YAML"),
        ("fsdp", "a: !!python/object/apply:os.system ['true']", "no YAML"),
        ("nanotron", "parallelism: {tp_mode: SOME}", "none of ALL_REDUCE"),
        ("bridge", "model: {recompute_granularity: full}", "model.recompute_method="),
        ("bridge", "train: {global_batch_size: 8}\nmodel: {global_batch_size: 9}", "drop one"),
    ],
)
def test_what_is_wrong_is_one_line(name: str, text: str, words: str) -> None:
    dialect = DIALECTS[name]
    with pytest.raises(InputError, match=words) as caught:
        dialect.settle(dialect.read(text, "file").configuration, 32)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_matters_and_no_plan_holds_is_named() -> None:
    reading = DIALECTS["deepspeed"].read('{"zero_optimization": {"offload_param": {"device": "cpu"}}}', "ds.json")
    (line,) = reading.refused
    assert "zero_optimization.offload_param.device=cpu" in line
    assert "leave it out" in line
    allowed = DIALECTS["deepspeed"].read('{"zero_optimization": {"offload_param": {"device": "none"}}}', "ds.json")
    assert allowed.refused == allowed.unknown == ()


def test_true_is_not_taken_for_one() -> None:
    reading = DIALECTS["fsdp"].read("use_cpu: true", "file")
    assert reading.notes == ("use_cpu=True: a plan is of the cluster's devices",)


def test_unknown_keys_are_listed() -> None:
    reading = DIALECTS["megatron"].read("--tensor-model-paralel-size 8 --lr 1 --some-new-thing", "file")
    assert reading.unknown == ("--tensor-model-paralel-size", "--some-new-thing")
    assert reading.unread == ("--lr",)


def test_a_key_given_twice_is_said() -> None:
    assert YAML.parse("a: 1\na: 2\n", "f") == ({"a": 2}, ("a is given twice: the last counts",))
    assert JSON.parse('{"a": 1, "a": 2}', "f") == ({"a": 2}, ("a is given twice: the last counts",))


def test_endless_aliases_are_refused() -> None:
    layers = "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}, z: *a{n - 1}}}\n" for n in range(1, 14))
    with pytest.raises(InputError, match="keys"):
        YAML.parse(f"a0: &a0 {{x: 1, y: 2}}\n{layers}", "f")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("torchrun x.py --tensor-model-parallel-size 8 --bf16", "megatron"),
        ("model:\n  tensor_model_parallel_size: 8\ntrain:\n  global_batch_size: 8\n", "bridge"),
        ("[parallelism]\ntensor_parallel_degree = 8\n", "torchtitan"),
        ('{"zero_optimization": {"stage": 3}}', "deepspeed"),
        ("fsdp_config:\n  fsdp_version: 2\nnum_processes: 8\n", "fsdp"),
        ("parallelism: {dp: 1, pp: 1, tp: 8}\n", "nanotron"),
    ],
)
def test_a_file_tells_what_it_is(text: str, name: str) -> None:
    assert recognised(text, "file").name == name


def test_a_file_of_nobody_is_refused() -> None:
    with pytest.raises(InputError, match="--framework"):
        recognised("colour: blue\n", "file")
    with pytest.raises(InputError, match="no TOML"):
        recognised("a = [", "file.toml")


def test_toml_reads_back() -> None:
    values = {"a.b": [1, 2], "a.c": "x", "top": True, "a.d.e": [["x"], ["y"]]}
    assert TOML.parse(TOML.dump(values, ["said"]), "f")[0] == values
