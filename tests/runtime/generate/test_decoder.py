"""What a rank keeps of texts, and what is done with it."""

from __future__ import annotations

import pytest
import torch
from answering import PINS, Plain, engine_of, model_of, prompts_of
from plans import spawn

from runtime.generate.generate import decoder_of
from runtime.generate.rows import Call
from runtime.train.answer_programs import AnswerSizes

SIZES = AnswerSizes(40, 3, 7)
SLOTS, HEADS, WIDTH, BYTES = 46, 2, 4, 8  # "grouped in one op": two blocks, two heads of keys and of values, float64
BLOCK = 2 * SIZES.rows * HEADS * SLOTS * WIDTH * BYTES


def _bytes(rank: int, plans: dict[str, int]) -> None:
    module, batch = model_of("grouped in one op")
    for plan, wanted in plans.items():
        decoder = decoder_of(engine_of(module, batch, PINS[plan]), SIZES)
        assert decoder.cache_bytes == wanted, (plan, decoder.cache_bytes)
        assert decoder.has_logits == (plan != "pp" or rank == 1)


@pytest.mark.parity
def test_a_rank_keeps_its_heads_of_its_blocks() -> None:
    """Texts of a data rank are its own: no ZeRO divides what is kept of them."""
    spawn(_bytes, 2, {"tp": BLOCK, "pp": BLOCK, "zero 3": 2 * BLOCK})


@pytest.mark.parametrize(
    "name", ["padded", *(pytest.param(n, marks=pytest.mark.parity) for n in ("grouped in one op", "window"))]
)
def test_rows_go_on_with_what_is_kept_of_others(name: str) -> None:
    module, batch = model_of(name)
    decoder = decoder_of(engine_of(module, batch, {}), AnswerSizes(40, 3, 7))
    plain, texts = Plain(module), prompts_of((9, 9, 9))
    for start, n in ((0, 7), (7, 1), (8, 1)):
        tokens = torch.tensor([text[start : start + n] for text in texts])
        decoder.logits(Call(tokens, torch.tensor([start] * 3), torch.tensor([n - 1] * 3), (n,) * 3))
    order = [2, 0, 0]
    decoder.reorder(order)
    new = torch.tensor([[4], [5], [6]])
    got = decoder.logits(Call(new, torch.tensor([9] * 3), torch.tensor([0] * 3), (1,) * 3))
    assert got is not None
    for row, origin in enumerate(order):
        want = plain.logits([*texts[origin], int(new[row])])
        torch.testing.assert_close(got[row], want, rtol=1e-9, atol=1e-9)
