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


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("model", "ranks"), CASES)
def test_all_families_equal_the_plain_model(model: str, ranks: int) -> None:
    settings = ["--set", *MODELS[model]] if MODELS.get(model) else []
    assert main(["verify", model, "--ranks", str(ranks), *settings]) == 0
