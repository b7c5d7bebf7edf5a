"""Every model under every family of plans equals the plain model on one process, on 2, 4 and 8 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.main import main

GPT = f"{Path(__file__).parents[2] / 'examples' / 'gpt.py'}:model"
SMALL = ("vocab=256", "hidden=64", "heads=8", "seq=32", "layers=4")
TYPES = (
    "gpt2", "llama", "qwen3", "mistral", "opt", "gpt_neox", "phi3", "gemma2", "gemma3_text", "mixtral", "bert", "t5",
    "vit", "whisper",
)  # fmt: skip
MODELS = {GPT: SMALL} | {f"hf:{name}": () for name in TYPES}
OTHERS = ("falcon", "bloom", "gptj", "bart", "roberta")  # nobody asked for these: at 2 ranks alone
CASES = [(model, ranks) for model in MODELS for ranks in (2, 4)] + [(GPT, 8)]
CASES += [(f"hf:{name}", 2) for name in OTHERS]

UNEVEN = [
    (GPT, 3, ("vocab=101", "hidden=48", "heads=6", "seq=32", "layers=7")),  # batch 6; 7 layers on 3 stages
    (GPT, 4, ("vocab=50257", "hidden=48", "heads=6", "seq=16", "layers=5")),
    ("hf:llama", 4, ("num_key_value_heads=2",)),
    ("hf:llama", 4, ("num_key_value_heads=1",)),
]


def named(model: str) -> str:
    """As the shards of ``make parity`` name it."""
    return model.removeprefix("hf:") if model.startswith("hf:") else "example"


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("model", "ranks"), CASES, ids=[f"of_{named(m)}_on_{ranks}" for m, ranks in CASES])
def test_all_families_equal_the_plain_model(model: str, ranks: int) -> None:
    settings = ["--set", *MODELS[model]] if MODELS.get(model) else []
    assert main(["verify", model, "--ranks", str(ranks), *settings]) == 0


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("model", "ranks", "settings"), UNEVEN, ids=[f"of_uneven_{n}" for n in range(len(UNEVEN))])
def test_sizes_that_ranks_do_not_divide(model: str, ranks: int, settings: tuple[str, ...]) -> None:
    assert main(["verify", model, "--ranks", str(ranks), "--set", *settings]) == 0
