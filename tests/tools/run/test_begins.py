"""A run begins with the values that the model's own code gives its parameters, by whatever means."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tools.main import main

MODEL = '''
import torch
from torch import nn

def begin(module):
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.weight)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.mix = nn.Embedding(256, 8), nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 256, bias=False)
        self.head.apply(begin)

    def forward(self, tokens, labels):
        logits = self.head(torch.relu(self.mix(self.tokens(tokens))))
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

def make(batch=2):
    return Model(), {n: torch.randint(0, 256, (batch, 16)) for n in ("tokens", "labels")}
'''


def test_a_head_of_zeros_knows_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    plan, report = str(tmp_path / "plan.json"), tmp_path / "report.json"
    place = ["--cluster", "local-cpu", "--devices", "2", "--global-batch", "4", "--pin", "tp=2"]
    assert main(["plan", f"{tmp_path / 'mine.py'}:make", *place, "-o", plan]) == 0
    assert main(["run", plan, "--steps", "1", "--report", str(report)]) == 0
    assert json.loads(report.read_text())["losses"] == [pytest.approx(math.log(256), rel=1e-6)]
