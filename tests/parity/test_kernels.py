"""Plans whose every product has a kernel chosen (none is built, torch computes) verify on two ranks.

The fused ops, their gradients and the collectives between them are those of the plain model.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.main import main

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]
LLAMA = ["hidden_size=256", "intermediate_size=512", "num_hidden_layers=2", "num_attention_heads=8", "vocab_size=512"]
FAMILIES = {
    "llama": [*LLAMA, "num_key_value_heads=2"],
    "phi3": [*LLAMA, "num_key_value_heads=2", "pad_token_id=0"],
    "gpt2": ["n_embd=256", "n_layer=2", "n_head=8", "vocab_size=512", "resid_pdrop=0", "embd_pdrop=0", "attn_pdrop=0"],
    "gpt_neox": LLAMA,
    "gemma2": [*LLAMA, "num_key_value_heads=2", "head_dim=32"],
    "mixtral": [*LLAMA, "num_key_value_heads=2"],
    "t5": ["d_model=256", "d_ff=512", "d_kv=32", "num_layers=2", "num_heads=8", "vocab_size=512"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_programs_verify(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    place = ["--cluster", "local-cpu", "--devices", "2", "--global-batch", "8", "--seq", "64"]
    pins = ["--pin", "tp=2", "--pin", "pp=1", "--pin", "dp=1"]
    assert main(["plan", f"hf:{family}", "--set", *FAMILIES[family], *place, *pins, "-o", str(path)]) == 0
    data = json.loads(path.read_text())
    products = [product for block in data["derived"]["blocks"] for product in block["products"]]
    assert any(product["fused"] for product in products)
    for product in products:
        product["kernels"] = ["absent", "absent", "absent"]
    path.write_text(json.dumps(data))
    assert main(["verify", str(path)]) == 0
    assert "all equal" in capsys.readouterr().out
