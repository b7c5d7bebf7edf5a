"""The configurations that ship have the parameter counts that their publications give."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.models.load import load

FOLDER = Path(__file__).parents[2] / "examples" / "configs"

# Brown et al., 2020 (table 2.1); Narayanan et al., 2021 (tables 1, 2); Grattafiori et al., 2024; the model cards
BILLIONS = {
    "gpt3-1.3b": 1.3, "gpt3-2.7b": 2.7, "gpt3-6.7b": 6.7, "gpt3-13b": 13.0, "gpt3-175b": 175.0,
    "megatron-530b": 529.6, "megatron-1t": 1008.0, "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.55,
    "llama-3.1-405b": 405.85, "mistral-7b": 7.24, "mixtral-8x7b": 46.7, "qwen3-8b": 8.19, "qwen3-32b": 32.76,
    "gemma-7b": 8.54, "gemma-2-9b": 9.24, "t5-11b": 11.3,
}  # fmt: skip


def test_every_file_is_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(BILLIONS)


@pytest.mark.parametrize("name", BILLIONS)
def test_parameters(name: str) -> None:
    source = load(f"hf:{FOLDER / name}.json", meta=True, seq=128)
    parameters = {id(p): p.numel() for p in source.module.parameters()}
    assert all(p.is_meta for p in source.module.parameters())
    assert sum(parameters.values()) / 1e9 == pytest.approx(BILLIONS[name], rel=0.02)
