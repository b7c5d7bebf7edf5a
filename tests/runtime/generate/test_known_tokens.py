"""Prompts of tokens that the model does not know are refused before any call."""

from __future__ import annotations

import pytest

from partitioner.errors import InputError
from runtime.generate.generate import _check_tokens
from runtime.generate.requests import Request

KNOWN = 50


@pytest.mark.parametrize("token", [50, -1, 10**30])
def test_a_token_that_is_none_of_the_model_is_named(token: int) -> None:
    asked = [Request(prompt=(0, 49), most=1), Request(prompt=(0, token), most=1, number=1)]
    with pytest.raises(InputError, match=f"prompt 1 has token {token}, the model knows 0 to 49"):
        _check_tokens(KNOWN, asked)


def test_all_others_are_taken() -> None:
    _check_tokens(KNOWN, [Request(prompt=(0, 49), most=1)])
