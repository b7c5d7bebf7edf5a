"""Rates count what a sample is made of, MFU is a share of the priced data type's peak, and each form says both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.gpt import model
from partitioner import Cluster, Plan, search, trace
from partitioner.precision import OWN, PRESETS
from tools.compare.diff import differences
from tools.figures import figures
from tools.figures.columns import ROWS, of_plan, winners
from tools.main import main
from tools.models.load import load

CLUSTER = Cluster.load("dgx-a100", devices=2)


def planned(dtype: torch.dtype = torch.float32, seq: int = 32) -> Plan:
    module, batch = model(vocab=256, hidden=64, heads=4, seq=seq, layers=2)
    return search(trace(module.to(dtype), batch), CLUSTER, 8)


def test_mfu_is_a_share_of_the_peak_of_the_data_type() -> None:
    for dtype, peak in ((torch.float32, 19.5e12), (torch.bfloat16, 312e12)):
        plan = planned(dtype)
        expected = plan.cost.flops / (plan.cost.step_seconds * 2 * peak)
        assert figures.mfu(plan) == pytest.approx(expected)


def test_an_image_is_a_sample_and_no_token() -> None:
    source = load("hf:vit", shrink=True, meta=True)
    plan = search(trace(source.module, source.batch), CLUSTER, 8)
    assert plan.model["tokens"] == 0
    assert figures.rate(plan) == pytest.approx(8 / plan.cost.step_seconds)
    column = of_plan("vit", plan)
    assert "samples/s" in column.values
    assert not [name for name in column.values if "tokens" in name]
    assert column.words["a sample"] == "no text"


def test_products_and_parameters_of_two_precisions() -> None:
    plan = planned()
    mixed = replace(plan, model=plan.model | {"product_dtype": "bfloat16"})
    assert figures.precision_words(mixed.model, OWN, plan.cluster) == "bfloat16 products of float32 parameters"
    assert figures.precision_label(plan.model, OWN, plan.cluster) == "float32, no TF32"


def test_a_precision_in_words() -> None:
    gpus = planned().cluster
    half = planned().model | {"dtype": "bfloat16", "product_dtype": "bfloat16"}
    kept = replace(PRESETS["bf16"], float32=("*.gate",))
    words = "bfloat16, gradients, masters and moments float32, *.gate in float32"
    assert figures.precision_words(half, kept, gpus) == words
    assert figures.precision_label(half, kept, gpus) == "bf16, *.gate in float32"
    single = planned().model
    cpus = Cluster.load("local-cpu", devices=2).as_dict()
    assert figures.precision_words(single, PRESETS["fp32"], gpus) == "float32, no TF32"
    assert figures.precision_words(single, PRESETS["fp32"], cpus) == "float32"
    fast = single | {"product_dtype": "tf32"}
    assert figures.precision_words(fast, PRESETS["tf32"], gpus) == "tf32 products of float32 parameters"


def test_what_is_assumed_is_said_and_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, other = planned(), planned(torch.bfloat16, 64)
    words = ["precision: float32, no TF32 -> bfloat16", "a sample: 32 tokens -> 64 tokens"]
    assert differences(plan, other)[:2] == words
    columns = [of_plan("a", plan), of_plan("b", other)]
    assert not winners(columns, next(row for row in ROWS if row.name == "MFU")), "shares of two peaks"
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    for path, made in zip(files, (plan, other), strict=True):
        made.save(path)
    for form in ([], ["--markdown"], ["--csv"], ["--json"], ["--html", str(tmp_path / "page.html")]):
        assert main(["compare", *files, *form]) == 0
        told = (tmp_path / "page.html").read_text() if "--html" in form else capsys.readouterr().out
        assert all(words in told for words in ("bfloat16", "float32", "32 tokens", "64 tokens"))
        if "--json" in form:
            assert json.loads(told)["columns"][1]["precision"] == "bfloat16"


def test_rows_of_integers_are_tokens_whatever_the_loss_asks() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(16, 8), nn.Linear(8, 4)

        def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(self.head(self.table(tokens).mean(1)), labels)

    batch = {"tokens": torch.zeros(2, 12, dtype=torch.int64), "labels": torch.zeros(2, dtype=torch.int64)}
    plan = search(trace(Classifier(), batch), CLUSTER, 8)
    assert figures.sample_words(plan.model) == "12 tokens a sample"
