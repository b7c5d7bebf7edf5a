"""Tokens are chosen as transformers chooses them, and drawn as a softmax says, whatever rows they stand in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from transformers import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from partitioner.errors import InputError
from runtime.generate.sampling import Sampling, choose, scores

CLASSES = 50
TEXT = (3, 7, 7, 41, 0, 9)


def logits_of(seed: int, classes: int = CLASSES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(classes, generator=generator, dtype=torch.float64)


def transformers_scores(logits: torch.Tensor, text: Sequence[int], how: Sampling) -> torch.Tensor:
    """In the order of its ``generate``."""
    steps: list[LogitsProcessor] = []
    if how.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.temperature not in (0, 1):
        steps.append(TemperatureLogitsWarper(how.temperature))
    if how.top_k:
        steps.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        steps.append(TopPLogitsWarper(how.top_p))
    found = logits[None].clone()
    for step in steps:
        found = step(torch.tensor([text]), found)
    return found[0]


HOW = [
    Sampling(), Sampling(repetition_penalty=1.3), Sampling(repetition_penalty=0.7), Sampling(temperature=0.6),
    Sampling(temperature=1.7, top_k=5), Sampling(temperature=1.0, top_k=1), Sampling(temperature=1.0, top_k=500),
    Sampling(temperature=1.0, top_p=0.9), Sampling(temperature=1.0, top_p=0.05), Sampling(temperature=1.0, top_p=1e-6),
    Sampling(temperature=0.8, top_k=20, top_p=0.7, repetition_penalty=1.2),
]  # fmt: skip


@pytest.mark.parametrize("how", HOW, ids=str)
def test_scores_are_those_of_transformers(how: Sampling) -> None:
    for seed in range(20):
        logits = logits_of(seed)
        got, want = scores(logits, TEXT, how), transformers_scores(logits, TEXT, how)
        assert torch.equal(got == -math.inf, want == -math.inf)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_equal_scores_at_the_edge_stay_together() -> None:
    logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    how = Sampling(temperature=1.0, top_k=2)
    assert torch.equal(scores(logits, (0,), how), transformers_scores(logits, (0,), how))
    assert (scores(logits, (0,), how) > -math.inf).tolist() == [False, True, True, True, False]


def test_the_likeliest_without_a_temperature() -> None:
    logits = logits_of(1)
    assert choose(logits, TEXT, Sampling(), 0) == int(logits.argmax())
    assert [how for how in HOW if how.is_likeliest] == [Sampling()]
    largest = int(logits.argmax())
    assert choose(logits, (largest,), Sampling(repetition_penalty=50.0), 0) != largest


def test_the_logits_stay_as_they_are() -> None:
    logits = logits_of(2)
    before = logits.clone()
    scores(logits, TEXT, HOW[-1])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("how", [Sampling(temperature=1.0, seed=4), Sampling(temperature=0.7, top_k=5, seed=5)])
def test_draws_are_as_frequent_as_the_softmax_says(how: Sampling) -> None:
    """Of ten classes, over texts and over positions: within five standard deviations of each count."""
    logits, many = logits_of(3, 10) / 3, 4000
    wanted = scores(logits, (0,), how).softmax(-1)
    for drawn in (
        [choose(logits, (0, 0, 0), how, number) for number in range(many)],
        [choose(logits, (0,) * (1 + place % 200), how, place // 200) for place in range(many)],
    ):
        counts = torch.bincount(torch.tensor(drawn), minlength=10).double()
        spread = (many * wanted * (1 - wanted)).sqrt()
        assert bool(((counts - many * wanted).abs() <= 5 * spread + 1e-9).all()), counts
        assert bool((counts[wanted == 0] == 0).all())


def test_a_draw_hangs_on_seed_text_and_position_alone() -> None:
    logits = torch.zeros(1000, dtype=torch.float64)

    def draw(seed: int, number: int, places: int) -> int:
        return choose(logits, (5,) * places, Sampling(temperature=1.0, seed=seed), number)

    assert draw(1, 2, 3) == draw(1, 2, 3)
    near = [draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(2, 1, 3), draw(1, 3, 2)]
    assert len(set(near)) == len(near)


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    how = Sampling(temperature=1.0, seed=9)
    torch.manual_seed(1)
    first, state = choose(logits_of(1), TEXT, how, 0), torch.get_rng_state()
    torch.manual_seed(2)
    assert choose(logits_of(1), TEXT, how, 0) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"temperature": math.inf}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0.0},
     {"top_p": 1.5}, {"repetition_penalty": 0.0}, {"repetition_penalty": math.inf}],
    ids=str,
)  # fmt: skip
def test_what_can_not_be_is_refused_by_name(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} is "):
        Sampling(**wrong)  # type: ignore[arg-type]
