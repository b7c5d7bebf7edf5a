"""MODEL, --set and what they load: any transformers type with a known head, or a function of a user's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from partitioner import trace
from partitioner.comparing.resample import resample
from partitioner.errors import InputError
from partitioner.ops.autograd_functions import AutogradCall
from partitioner.sharding.op_rules import rule_of
from runtime.state.parameters_on_meta import parameters_on_meta
from runtime.verify.captured_graph import captured
from tools.models.entry_point import Entry, parse, parse_settings
from tools.models.load import Source, load
from tools.models.traced import traced

GPT = str(Path(__file__).parents[3] / "examples" / "gpt.py") + ":model"
NAMED = [
    "gpt2", "llama", "qwen3", "mistral", "opt", "gpt_neox", "phi3", "gemma2", "gemma3_text", "mixtral", "bert",
    "t5", "vit", "whisper",
]  # fmt: skip
OTHERS = [
    "falcon", "qwen2", "bloom", "gptj", "roberta", "distilbert", "bart", "deit", "olmo2", "stablelm", "cohere",
    "granite", "starcoder2", "deepseek_v3",
]  # fmt: skip


def loss(source: Source) -> torch.Tensor:
    output = source.module(**source.batch)
    return output if isinstance(output, torch.Tensor) else output.loss


@pytest.mark.parametrize("kind", [*NAMED, *OTHERS])
def test_a_type_is_shrunk_and_trains(kind: str) -> None:
    source = load(f"hf:{kind}", shrink=True)
    assert sum(p.numel() for p in source.module.parameters()) < 1_000_000
    assert not [m for m in source.module.modules() if isinstance(m, nn.Dropout) and m.p]
    value = loss(source)
    value.backward()
    assert value.isfinite()
    again = load(source.spec, source.settings, source.seq, source.batch_size)
    assert torch.equal(loss(again), value), "what it printed makes the same model"


@pytest.mark.parametrize("kind", [*NAMED, "deepseek_v3"])
def test_on_meta_only_parameters_lack_storage(kind: str) -> None:
    real, meta = load(f"hf:{kind}", shrink=True), load(f"hf:{kind}", shrink=True, meta=True)
    assert all(p.is_meta for p in meta.module.parameters())
    shapes = {name: p.shape for name, p in real.module.named_parameters()}
    assert {name: p.shape for name, p in meta.module.named_parameters()} == shapes, "tied weights stay tied"
    buffers = dict(real.module.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in meta.module.named_buffers())
    assert not any(t.is_meta for t in meta.batch.values())


def test_the_head_decides_class_and_batch() -> None:
    heads = {kind: load(f"hf:{kind}", shrink=True) for kind in ("gpt2", "bert", "bart", "vit", "whisper")}
    assert {kind: type(source.module).__name__ for kind, source in heads.items()} == {
        "gpt2": "GPT2LMHeadModel",
        "bert": "BertForMaskedLM",
        "bart": "BartForConditionalGeneration",
        "vit": "ViTForImageClassification",
        "whisper": "WhisperForConditionalGeneration",
    }
    text = ["input_ids", "labels"]
    names = {kind: list(source.batch) for kind, source in heads.items()}
    image, speech = ["pixel_values", "labels"], ["input_features", "labels"]
    assert names == {"gpt2": text, "bert": text, "bart": text, "vit": image, "whisper": speech}


def test_samples_ignore_different_numbers_of_positions() -> None:
    batch = load("hf:llama", shrink=True, batch=4, seq=16).batch
    assert batch["input_ids"].shape == (4, 16)
    assert (batch["labels"] == -100).sum(1).tolist() == [1, 2, 3, 4]
    asked = batch["labels"] != -100
    assert torch.equal(batch["labels"][asked], batch["input_ids"][asked])


def test_positions_are_had_for_the_asking() -> None:
    source = load("hf:llama", {"position_ids": True}, shrink=True, batch=3, seq=12)
    assert list(source.batch) == ["input_ids", "labels", "position_ids"]
    assert (source.batch["position_ids"] == 0).nonzero().tolist() == [[0, 0], [0, 4], [1, 0], [1, 5], [2, 0], [2, 6]]
    assert not source.module.config.use_cache
    again = load(source.spec, source.settings, source.seq, source.batch_size)
    assert torch.equal(loss(again), loss(source)), "what it printed makes the same model"
    other = load("hf:llama", {"position_ids": True, "use_cache": True}, shrink=True)
    assert other.module.config.use_cache, "what is set rules"
    for settings in ({}, {"position_ids": False}):
        plain = load("hf:llama", settings, shrink=True)
        assert "position_ids" not in plain.batch
        assert plain.module.config.use_cache
    for kind in ("bloom", "vit"):
        with pytest.raises(InputError, match=f"--set position_ids: .* of hf:{kind} takes no such argument"):
            load(f"hf:{kind}", {"position_ids": True}, shrink=True)


def test_shrinking_keeps_the_architecture() -> None:
    mistral, gemma = load("hf:mistral", shrink=True).module.config, load("hf:gemma3_text", shrink=True).module.config
    assert mistral.num_attention_heads // mistral.num_key_value_heads == 4
    assert set(gemma.layer_types) == {"sliding_attention", "full_attention"}
    assert gemma.num_hidden_layers == 6
    assert mistral.sliding_window < 32, "the window still hides something"


def test_what_is_set_is_kept_and_the_rest_follows() -> None:
    settings = parse_settings(["n_embd=48", "num_attention_heads=6", "num_hidden_layers=3", "resid_pdrop=0.5"])
    source = load("hf:gpt2", settings, shrink=True)
    config = source.module.config
    assert (config.n_embd, config.n_head, config.n_layer, config.resid_pdrop, config.embd_pdrop) == (48, 6, 3, 0.5, 0.0)
    assert "n_layer=3" in str(source)
    assert "GPT2LMHeadModel" in str(source)
    assert load("hf:llama", {"hidden_size": "96"}, shrink=True).module.config.intermediate_size == 256


def test_without_shrinking_sizes_and_dropout_are_the_types_own() -> None:
    source = load("hf:gpt2", {"vocab_size": "101"}, meta=True)
    config = source.module.config
    assert (config.n_embd, config.n_layer, config.resid_pdrop, config.vocab_size) == (768, 12, 0.1, 101)
    assert source.batch["input_ids"].shape == (2, 1024)
    assert config.eos_token_id < 101, "special tokens stay inside the vocabulary"
    assert source.settings["eos_token_id"] == config.eos_token_id, "and that is said"


def test_a_configuration_file(tmp_path: Path) -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    fields = {"model_type": "gemma3_text", "num_hidden_layers": 12, "layer_types": kinds * 2, "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for spec in (f"hf:{tmp_path}/config.json", f"hf:{tmp_path}"):
        config = load(spec, shrink=True).module.config
        assert (config.num_hidden_layers, config.layer_types) == (6, kinds)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertLMHeadModel"]}))
    assert type(load(f"hf:{tmp_path}", shrink=True).module).__name__ == "BertLMHeadModel"


def test_a_function_of_a_file() -> None:
    source = load(GPT, parse_settings(["layers=3", "tied=true"]), seq=16, batch=3)
    assert len(source.module.blocks) == 3
    assert source.module.head.weight is source.module.tokens.weight
    assert source.batch["tokens"].shape == (3, 16)
    assert torch.equal(loss(source), loss(load(GPT, source.settings, 16, 3)))


def test_a_tied_weight_stays_one_on_meta() -> None:
    module = load(GPT, {"tied": True}, meta=True).module
    assert module.head.weight is module.tokens.weight
    with parameters_on_meta():
        first, shared, real = nn.Linear(2, 2), nn.Linear(2, 2), nn.Parameter(torch.ones(2, 2))
        first.weight = shared.weight = real
        first.bias.data = torch.ones(2)
    assert shared.weight is first.weight
    assert first.bias.is_meta
    assert shared.weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_model.py").write_text("WIDTH = 3\n")
    lines = ["import torch", "from neighbour_of_model import WIDTH", "def make(**settings):"]
    lines += ["    return torch.nn.Linear(WIDTH, settings['out']), {'input': torch.zeros(2, WIDTH)}"]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    assert load(f"{tmp_path}/mine.py:make", {"out": "5"}).module.out_features == 5


def test_settings_are_literals_or_text() -> None:
    found = parse_settings(["a=1", "b=0.5", "c=True", "d=false", "e=none", "f=gelu", "g=[1, 2]", "h=x=y"])
    assert found == {"a": 1, "b": 0.5, "c": True, "d": False, "e": None, "f": "gelu", "g": [1, 2], "h": "x=y"}


def test_parsing_imports_nothing() -> None:
    assert parse("nowhere/at_all.py:model") == Entry("file", Path("nowhere/at_all.py"), "model")
    assert parse("hf:nothing") == Entry("hf", None, "nothing")
    assert parse("hf:some/config.json") == Entry("hf", Path("some/config.json"), "config")


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [
        ("llama", {}, "'llama' is none of file.py:function"),
        ("hf:", {}, "none of"),
        ("hf:llam", {}, "'llam' is no model type of transformers; did you mean llama"),
        ("hf:sam", {}, "hf:sam has no causal"),
        ("hf:llama", {"hiden_size": 3}, "--set hiden_size: not a field of LlamaConfig; did you mean hidden_size"),
        ("hf:gpt2", {"num_hidden_layer": 3}, "did you mean num_hidden_layers"),
        ("hf:llama", {"hidden_size": "big"}, "hf:llama: .*hidden_size.*expected int"),
        ("hf:llama", {"hidden_size": 50}, "hidden size .50. is not a multiple"),
        ("hf:moonshine", {}, "MoonshineConfig does not tell its input's shape"),
        ("hf:absent/config.json", {}, "absent/config.json is no readable config.json"),
        ("absent.py:model", {}, "absent.py: no such Python file"),
        (GPT, {"layer": 2}, "--set layer: .*gpt.py:model takes no such argument; did you mean layers"),
        (GPT.replace(":model", ":modle"), {}, "has no function modle; did you mean model"),
        (GPT, {"dropout": 2}, r"gpt\.py:\d+: .*Error: "),
    ],
)
def test_bad_input_is_one_line_that_names_it(spec: str, settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load(spec, settings, shrink=True)
    assert "\n" not in str(caught.value)


def test_a_text_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(InputError, match="--seq 2048: hf:gpt2 has 1024 positions.*max_position_embeddings=2048"):
        load("hf:gpt2", seq=2048, meta=True)
    assert load("hf:gpt2", {"max_position_embeddings": 2048}, seq=2048, meta=True).seq == 2048


@pytest.mark.parametrize(
    ("spec", "settings", "length"),
    [
        ("hf:llama", {}, 2048),
        ("hf:llama", {"max_position_embeddings": 8192}, 8192),
        ("hf:gpt2", {}, 1024),
        ("hf:roberta", {}, 510),  # positions count from behind the padding row
        ("hf:bart", {}, 1024),
        ("hf:led", {}, 1024),  # the decoder's, which is the shorter
        ("hf:vit", {}, None),
    ],
)
def test_a_text_is_as_long_as_its_configuration_allows(
    spec: str, settings: dict[str, object], length: int | None
) -> None:
    source = load(spec, settings, meta=True)
    assert source.seq == length
    assert length is None or source.batch["input_ids"].shape == (2, length)
    assert f"float32{f', {length:,} tokens a sample' if length else ''}, batch" in str(source)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:qwen3", "say --seq: the configuration of hf:qwen3 allows 32768 tokens a sample"),
        ("hf:gemma3", "say --seq: the configuration of hf:gemma3 allows 131072 tokens"),
        ("hf:t5", "say --seq: the configuration of hf:t5 does not tell how many tokens a sample has"),
        ("hf:xlnet", "say --seq"),
        ("hf:ministral", "transformers refuses its own default configuration for ministral: TypeError: .*config.json"),
    ],
)
def test_what_a_configuration_does_not_tell_is_asked_for(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(spec, meta=True)


def test_a_default_that_cannot_run_is_told_as_such() -> None:
    words = "transformers refuses its own default configuration for deepseek_v2: TypeError: topk.*config.json"
    with pytest.raises(InputError, match=words):
        traced(load("hf:deepseek_v2", {"num_hidden_layers": 4}, seq=16, meta=True))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def make():\n    return 3\n", "must return .module, batch., and returned int"),
        ("def make():\n    import torch\n    return torch.nn.Linear(1, 1), [1]\n", "must be a dict of tensors"),
        ("def make():\n    return 1 / 0\n", r"mine\.py:2: ZeroDivisionError: division by zero"),
        ("import not_there_at_all\n", r"mine\.py:1: ModuleNotFoundError"),
        ("def make(:\n", r"mine\.py.*SyntaxError"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, body: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(body)
    with pytest.raises(InputError, match=words):
        load(f"{tmp_path}/mine.py:make")


UNNAMED = ("falcon", "bloom", "deepseek_v3", "gptj", "cohere", "mpt", "distilbert", "marian")


@pytest.mark.parametrize(
    "name", [n if n in ("bloom", "deepseek_v3") else pytest.param(n, marks=pytest.mark.parity) for n in UNNAMED]
)
def test_a_model_that_nobody_named_is_traced_like_any_other(name: str) -> None:
    source = load(f"hf:{name}", shrink=True)
    graph = trace(source.module, source.batch)
    found = captured(source.module, graph, resample(source.batch, graph.batched, 3))
    assert found is not None
    assert found.error <= min(found.limit, 1e-5), found  # float32, at a batch size that was not traced
    assert graph.inseparable is None
    assert len(graph.blocks) >= 2
    ops = [graph.nodes[name] for unit in graph.units for name in unit.nodes]
    assert all(rule_of(str(n.target)) or isinstance(n.target, AutogradCall) for n in ops)


def test_dtype_is_the_parameters_dtype() -> None:
    source = load("hf:llama", {"dtype": "bfloat16"}, meta=True, shrink=True)
    assert {p.dtype for p in source.module.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(InputError, match="dtype int8 is no floating-point dtype"):
        load("hf:llama", {"dtype": "int8"}, meta=True, shrink=True)
