"""Tokens of two sides are compared, and said to be others where they are; each side is timed as often as asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from partitioner.errors import InputError
from tools.bench import generation
from tools.bench.generation_rank import OURS, THEIRS, Difference, Timed, difference

SMALL = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=1", "vocab_size=64", "num_attention_heads=2",
         "num_key_value_heads=1"]  # fmt: skip
SECONDS = {OURS: [1.0], THEIRS: [1.0]}


class Lengths(nn.Module):
    """A model whose logits are as many tenths as its text has tokens, times the class."""

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=0.1 * input_ids.shape[1] * torch.arange(9.0).expand(*input_ids.shape, 9))


def test_the_first_other_token_is_named() -> None:
    prompts, ours = torch.zeros(2, 3, dtype=torch.int64), [[1, 2, 3], [4, 5, 6]]
    assert difference(Lengths(), prompts, ours, [[1, 2, 3], [4, 5, 6]]) is None
    found = difference(Lengths(), prompts, ours, [[1, 2, 3], [4, 7, 8]])
    assert found is not None
    assert (found.text, found.token, found.ours, found.theirs) == (1, 1, 5, 7)
    assert found.apart == pytest.approx(0.1 * 4 * 2)


def test_a_ratio_is_that_of_medians() -> None:
    found = generation.ratio([1.0, 2.0, 9.0], [4.0, 3.0, 5.0])
    assert found.value == 2.0
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("timed", "words"),
    [
        (Timed(SECONDS, {OURS: Difference(0, 3, 5, 7, 0.5)}, 0.5), "text 0 at new token 3: 5, not 7"),
        (Timed(SECONDS, {OURS: None}, 1.0), "they are not divided"),
    ],
)
def test_what_is_not_the_same_work_is_refused(timed: Timed, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation.Bench, "__init__", lambda self: None)
    monkeypatch.setattr(generation.Bench, "_timed", lambda self, ranks, texts: timed)
    with pytest.raises(InputError, match=words):
        generation.Bench().measure(2, 1)  # type: ignore[call-arg]


def test_both_sides_make_the_same_and_are_timed_in_turn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    words = ["--configs", "1x2", "--rounds", "3", "--prompt", "8", "--new", "4", "--json", str(file), "--set", *SMALL]
    assert generation.main(words) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert {side: len(seconds) for side, seconds in row["timed"]["seconds"].items()} == {OURS: 3, THEIRS: 3}
    assert row["timed"]["other"] == {OURS: None}
    assert row["over"][THEIRS]["value"] > 0
    assert "equal" in capfd.readouterr().out
