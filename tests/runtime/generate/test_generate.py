"""Texts under plans of two and four ranks are, token by token, those of the plain module and of transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from answering import (
    BEGIN,
    DRAWN,
    GLOBAL,
    PINS,
    SETTINGS,
    TRANSLATOR,
    Plain,
    check_answers,
    engine_of,
    model_of,
    prompts_of,
    sources_of,
)
from hand_decoders import LONGEST
from plans import spawn
from transformers import GenerationMixin

from partitioner.errors import InputError
from runtime.generate.generate import Answer, decoder_of, generate
from runtime.generate.requests import Continued
from runtime.generate.sampling import Sampling
from runtime.train.answer_programs import AnswerSizes

SIZES = (5, 19, 1, 33, 8)
HAND_MADE = "grouped in one op"


def _texts(rank: int, name: str, plans: Sequence[str], most: int = 12) -> None:
    """More texts than rows, the likeliest ones and drawn ones."""
    module, batch = model_of(name)
    for plan in plans:
        engine = engine_of(module, batch, PINS[plan])
        check_answers(module, engine, prompts_of(SIZES), most, rows=2, chunk=7)
        check_answers(module, engine, prompts_of(SIZES), most, DRAWN, rows=2, chunk=7)


def ranks_of(plan: str) -> int:
    return math.prod(int(PINS[plan].get(axis, 1)) for axis in ("tp", "dp", "pp"))


@pytest.mark.parametrize("plans", [("tp", "zero 3"), pytest.param(("pp", "zero 1"), marks=pytest.mark.parity)], ids=str)
def test_texts_on_two_ranks(plans: tuple[str, ...]) -> None:
    spawn(_texts, 2, HAND_MADE, plans)


def _cut_out(rank: int) -> None:
    """Ranks have a part each of the table of positions, by rows."""
    module, batch = model_of("positions cut out")
    batch = {name: torch.cat([t, t, t], 1)[:, :LONGEST] for name, t in batch.items()}
    engine = engine_of(module, batch, {"tp": 2, "rows": "shard:0"})
    check_answers(module, engine, prompts_of(SIZES), 9, rows=2, chunk=7)


def test_texts_of_positions_that_ranks_have_parts_of() -> None:
    spawn(_cut_out, 2)


@pytest.mark.parity
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plan", PINS)
@pytest.mark.parametrize("name", ["llama", "mistral", "tril_buffer", "merged_heads_first"])
def test_texts_under_every_plan(name: str, plan: str) -> None:
    if plan == "interleaved" and name not in SETTINGS:
        return  # two blocks
    spawn(_texts, ranks_of(plan), name, (plan,), seconds=500.0)


def _sourced(rank: int, name: str, plan: str) -> None:
    module, batch = model_of(name)
    engine = engine_of(module, batch, PINS[plan])
    sources = sources_of(batch, (5, 19, 5, 24, 5))
    check_answers(module, engine, None, 9, sources=sources, rows=2, chunk=4)
    prompts = [[BEGIN, *prompt] for prompt in prompts_of((1, 6, 3, 2, 9))]
    check_answers(module, engine, prompts, 5, DRAWN, sources=sources, rows=2, chunk=4)


def test_texts_of_sources_whose_mask_two_stages_look_at() -> None:
    spawn(_sourced, 2, TRANSLATOR, "pp")


@pytest.mark.parity
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plan", PINS)
@pytest.mark.parametrize("name", ["t5", "bart", "whisper", TRANSLATOR])
def test_texts_of_sources_under_every_plan(name: str, plan: str) -> None:
    if plan == "interleaved":
        return  # two kinds of blocks
    spawn(_sourced, ranks_of(plan), name, plan, seconds=500.0)


def _training(rank: int, plans: Sequence[str]) -> None:
    """The same steps with and without texts between them; texts after a step are those of what it has made."""
    module, batch = model_of(HAND_MADE)
    given = {n: torch.cat([t, t.flip(1)]) for n, t in batch.items()}
    assert len(given["tokens"]) == GLOBAL
    for plan in plans:
        losses: list[list[float]] = []
        for asks in (False, True):
            engine = engine_of(module, batch, PINS[plan], lr=0.05)
            losses.append([])
            for _ in range(3):
                losses[-1].append(float(engine.step(engine.own(given))))
                if asks:
                    generate(engine, prompts_of(SIZES), most=3, rows=2, chunk=7)
        assert losses[0] == losses[1]
        assert losses[0][0] > losses[0][2]
        state = engine.state_dict()  # pyright: ignore[reportPossiblyUnboundVariable]
        trained, _ = model_of(HAND_MADE)
        trained.load_state_dict(state or trained.state_dict())
        check_answers(trained, engine, prompts_of(SIZES), 8, rows=2, chunk=7)  # pyright: ignore


@pytest.mark.parity
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plans", [("zero 3", "zero 1"), ("tp", "pp")], ids=str)
def test_training_goes_on_as_if_nobody_had_asked(plans: tuple[str, ...]) -> None:
    spawn(_training, 2, plans, seconds=500.0)


def greedy(module: Any, tokens: torch.Tensor, most: int, **given: torch.Tensor) -> list[int]:
    """What transformers' ``generate`` appends."""
    config = module.generation_config
    config.eos_token_id = config.forced_eos_token_id = None
    module.eval()
    if not tokens.is_floating_point():
        given["attention_mask"] = torch.ones_like(tokens)  # a token that is the padding's counts as others do
    with torch.no_grad():
        return GenerationMixin.generate(module, tokens, max_new_tokens=most, do_sample=False, **given)[0].tolist()


DECODERS = (
    "gpt2", "llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt_neox", "opt", "phi3", "falcon", "bloom",
)  # fmt: skip
ENCODERS = ("t5", "bart", "marian", "whisper")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*itertools.product(DECODERS, (torch.float64, torch.float32)), ("mixtral", torch.float32)],  # of one kernel
    ids=str,
)
def test_the_likeliest_texts_are_those_of_transformers(name: str, dtype: torch.dtype) -> None:
    module, batch = model_of(name)
    module = module.to(dtype)
    engine, prompts = engine_of(module, batch, {}), prompts_of(SIZES, 90)
    answers = generate(engine, prompts, most=15, rows=2, chunk=7)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert greedy(module, torch.tensor([prompt]), 15) == [*prompt, *answer.tokens]


@pytest.mark.parity
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_likeliest_texts_of_sources_are_those_of_transformers(name: str, dtype: torch.dtype) -> None:
    module, batch = model_of(name)
    module = module.to(dtype)
    batch = {n: t.to(dtype) if t.is_floating_point() else t for n, t in batch.items()}
    engine, sources = engine_of(module, batch, {}), sources_of(batch, (5, 19, 5))
    answers = generate(engine, sources=sources, most=15, rows=2)
    for source, answer in zip(sources, answers, strict=True):
        (tokens,) = source.values()
        assert greedy(module, tokens[None], 15)[1:] == list(answer.tokens)


@pytest.mark.parity
def test_texts_two_hundred_tokens_past_the_traced_length() -> None:
    module, batch = model_of("mistral")
    engine = engine_of(module, batch, {})
    check_answers(module, engine, prompts_of((30, 3)), 200, rows=2, chunk=16)
    check_answers(module, engine, prompts_of((30, 3)), 200, DRAWN, rows=2, chunk=16)


@pytest.fixture(scope="module")
def small() -> Any:
    """An engine of one rank, and its module."""
    module, batch = model_of(HAND_MADE)
    return engine_of(module, batch, {}), module


def test_drawn_texts_hang_on_no_batching(small: Any) -> None:
    engine, module = small
    found = {
        tuple(check_answers(module, engine, prompts_of(SIZES), 10, DRAWN, rows=rows, chunk=chunk))
        for rows, chunk in ((1, 5), (2, 64), (5, 7), (8, 1))
    }
    (texts,) = found
    other = Sampling(temperature=1.0, top_k=20, top_p=0.95, repetition_penalty=1.2, seed=4)
    again = check_answers(module, engine, prompts_of(SIZES), 10, other, rows=2)
    assert all(a != b for a, b in zip(texts, again, strict=True))
    same = check_answers(module, engine, [[5, 6]] * 4, 10, DRAWN)
    assert len(set(same)) == 4  # one prompt, four texts


def test_ends_and_stops_end_a_text(small: Any) -> None:
    engine, module = small
    (prompt,) = prompts_of((5,))
    (whole,) = generate(engine, [prompt], most=10)
    assert whole == Answer(Plain(module).continued(prompt, 10, Sampling(), 0), "length")
    place = next(n for n in range(2, 10) if whole.tokens[n] not in whole.tokens[:n])
    assert generate(engine, [prompt], most=10, ends=[whole.tokens[place]]) == [Answer(whole.tokens[:place], "stop")]
    assert generate(engine, [prompt], most=10, stops=lambda new: len(new) == 4) == [Answer(whole.tokens[:4], "stop")]
    told: list[tuple[int, int, str]] = []

    def tell(text: Continued) -> None:
        told.append((text.request.number, text.tokens[-1], text.finish))

    answers = generate(engine, prompts_of(SIZES), most=4, rows=2, chunk=7, tell=tell)
    for n, answer in enumerate(answers):
        assert [token for number, token, _ in told if number == n] == list(answer.tokens)
        assert [finish for number, _, finish in told if number == n] == ["", "", "", "length"]


def test_what_can_not_be_asked(small: Any) -> None:
    engine, _ = small
    for words, asked in (
        ("prompt 1 has no tokens", {"prompts": [[1], []]}),
        ("most, rows, chunk and beams must be positive, not 0", {"prompts": [[1]], "most": 0}),
        ("must be positive", {"prompts": [[1]], "rows": 0}),
        ("give prompts, or sources", {}),
        ("1 prompts and 2 sources", {"prompts": [[1]], "sources": [{}, {}]}),
        ("the model is given nothing, and a source of a text holds x",
         {"prompts": [[1]], "most": 2, "sources": [{"x": torch.tensor([1])}]}),
        ("does not begin its answers itself", {"sources": [{"x": torch.tensor([1])}], "most": 2}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            generate(engine, **asked)  # type: ignore[arg-type]
    assert generate(engine, []) == []
    with pytest.raises(InputError, match="places.weight has 64 rows, and row 64 is looked up"):
        generate(engine, [[1]], most=64)


def test_decoders_are_kept_for_texts_that_they_are_long_enough_for(small: Any) -> None:
    engine, _ = small
    first = decoder_of(engine, AnswerSizes(30, 3, 5))
    assert decoder_of(engine, AnswerSizes(30, 3, 5)) is first
    assert decoder_of(engine, AnswerSizes(21, 3, 5)) is first
    for other in (AnswerSizes(31, 3, 5), AnswerSizes(30, 2, 5), AnswerSizes(30, 3, 4)):
        assert decoder_of(engine, other) is not first
