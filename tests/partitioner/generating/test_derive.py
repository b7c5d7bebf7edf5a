"""What a derived graph answers, a few positions at a time, equals the plain module run on each text from its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from answers import LIMIT, Answers, Batch, Plain, derived, roughened, texts_of, worst
from hand_decoders import MADE, VOCABULARY
from torch import nn

from tools.models.load import load

LENGTH = 40  # of texts; examples have 24 positions
GPT = f"{Path(__file__).parents[3] / 'examples' / 'gpt.py'}:model"
SIZES = {"vocab": 96, "hidden": 32, "heads": 4, "seq": LENGTH, "layers": 2}
NARROW = {"sliding_window": 8}
FAMILIES: dict[str, dict[str, object]] = {
    "gpt2": {}, "llama": {"num_key_value_heads": 2}, "qwen3": {"num_key_value_heads": 4}, "mistral": NARROW,
    "gemma2": NARROW, "gemma3_text": {**NARROW, "num_hidden_layers": 6}, "gpt_neox": {}, "opt": {}, "phi3": {},
    "falcon": {}, "bloom": {}, "mixtral": {}, "t5": {}, "bart": {}, "marian": {}, "whisper": {}, "mpt": {}, "gptj": {},
    "qwen2_moe": {}, "deepseek_v3": {}, "codegen": {}, "umt5": {},
}  # fmt: skip
EVERY_DAY = ("mistral", "t5")
HAND_MADE_EVERY_DAY = ("tril_buffer", "alibi_in_one_op", "window", "padded", "grouped in one op")


def some_parity(names: Any, every_day: tuple[str, ...]) -> list[Any]:
    """All of them, but for a few marked parity."""
    return [pytest.param(name, marks=[] if name in every_day else [pytest.mark.parity]) for name in names]


def family(name: str, settings: dict[str, object]) -> tuple[nn.Module, Batch, int]:
    """A model of transformers, an example of 24 positions, and how many tokens it knows."""
    source = load(f"hf:{name}", settings, seq=24, batch=2, shrink=True)
    return roughened(source.module), source.batch, source.module.config.vocab_size


def sources_of(names: tuple[str, ...], batch: Batch, many: int, positions: int, vocabulary: int) -> Batch:
    """A source for each text."""
    generator, found = torch.Generator().manual_seed(7), Batch()
    for name in names:
        like = batch[name]
        if like.is_floating_point():
            found[name] = torch.randn(many, *like.shape[1:], generator=generator)
        else:
            found[name] = torch.randint(3, vocabulary, (many, positions), generator=generator)
    return found


def check(module: nn.Module, batch: Batch, vocabulary: int, length: int = LENGTH, source: int | None = None) -> None:
    """Five texts in two rows, of unequal lengths, among them one of a single token and two that are as long as can
    be."""
    derivation = derived(module, batch, length, source=source)
    texts = texts_of((length, length // 2 - 1, length - 3, 1, length), vocabulary)
    sources = sources_of(derivation.sources, batch, len(texts), source or 24, vocabulary)
    assert worst(Answers(module, derivation), Plain(module), texts, vocabulary, sources) <= LIMIT


@pytest.mark.parametrize("name", some_parity(FAMILIES, EVERY_DAY))
def test_models_of_transformers(name: str) -> None:
    check(*family(name, FAMILIES[name]))


def test_the_example() -> None:
    source = load(GPT, SIZES)
    assert source.batch["tokens"].shape[1] == LENGTH
    shorter = {n: t[:, :24] for n, t in source.batch.items()}
    check(roughened(source.module), shorter, 96)


@pytest.mark.parametrize("name", some_parity(MADE, HAND_MADE_EVERY_DAY))
def test_attention_written_by_hand(name: str) -> None:
    module, batch = MADE[name]()
    check(roughened(module), batch, VOCABULARY)


@pytest.mark.parametrize("name", some_parity(("padded", "window"), ("window",)))
def test_texts_shorter_than_the_example(name: str) -> None:
    module, batch = MADE[name]()
    check(roughened(module), batch, VOCABULARY, length=17)


@pytest.mark.parity
def test_texts_of_ten_times_the_examples_length() -> None:
    check(*family("mistral", NARROW), length=240)


@pytest.mark.parity
@pytest.mark.parametrize("source", [11, 31])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_sources_of_other_lengths(name: str, source: int) -> None:
    check(*family(name, {}), source=source)


def test_calls_of_one_position_from_the_first_on() -> None:
    module, batch = MADE["window"]()
    derivation = derived(roughened(module), batch, LENGTH, rows=3)
    texts = texts_of((LENGTH, 9, 33, 12), VOCABULARY)
    assert worst(Answers(module, derivation, (1,)), Plain(module), texts, VOCABULARY, chunks=(1,)) <= LIMIT


def test_a_call_of_the_whole_text() -> None:
    module, batch = MADE["tril_buffer"]()
    derivation = derived(roughened(module), batch, LENGTH, rows=1)
    answers = Answers(module, derivation, (LENGTH,))
    texts = texts_of((LENGTH, 23), VOCABULARY)
    assert worst(answers, Plain(module), texts, VOCABULARY, chunks=(LENGTH,)) <= LIMIT
