"""Predicted peaks of every model and family are those that MemTracker counts, within 2 %."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.runtime.dry_run.test_counted_peak import MOST, beyond, errors

_WIDTHS: dict[str, object] = {
    "num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "vocab_size": 8192,
}  # fmt: skip
_GATED: dict[str, object] = _WIDTHS | {"intermediate_size": 1536, "num_key_value_heads": 4}
_T5: dict[str, object] = {
    "num_layers": 4, "d_model": 512, "d_ff": 2048, "num_heads": 8, "d_kv": 64, "vocab_size": 8192,
}  # fmt: skip
MODELS: list[tuple[str, Mapping[str, object], int | None]] = [
    *((name, _GATED, 256) for name in ("llama", "qwen3", "mistral", "phi3", "gemma2", "gemma3_text")),
    *((name, _WIDTHS, 256) for name in ("gpt2", "opt", "gpt_neox", "bert")),
    ("t5", _T5, 256),
    ("vit", {"num_hidden_layers": 4}, None),
    ("whisper", {"encoder_layers": 4, "decoder_layers": 4}, None),
]


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "settings", "seq"), MODELS)
def test_predicted_peaks_are_counted_ones(name: str, settings: Mapping[str, object], seq: int | None) -> None:
    found = errors(f"hf:{name}", settings, seq)
    assert len(found) >= 10
    assert beyond(found, MOST) == {}
