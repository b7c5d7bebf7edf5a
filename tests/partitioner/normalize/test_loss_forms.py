"""A mean over rows whose sum no float16 holds is that of float32, as of eager on GPUs; on CPUs eager overflows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import trace
from partitioner.graph.interpret import interpret

ROWS, WORDS = 4096, 8
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "weighted": lambda z, y: F.cross_entropy(z, y, torch.linspace(1, 2, WORDS, dtype=z.dtype)),
    "smoothed": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "nll_loss": lambda z, y: F.nll_loss(F.log_softmax(z, -1), y),
}


class Steep(nn.Module):
    """Every row's loss is about 100."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss, self.logits = loss, nn.Embedding(2, WORDS)
        with torch.no_grad():
            self.logits.weight.copy_(torch.tensor([[0.0] + [-100.0] * (WORDS - 1)] * 2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.logits(x).flatten(0, 1), y.flatten())


@pytest.mark.parametrize("name", LOSSES)
def test_rows_are_summed_in_float32(name: str) -> None:
    module = Steep(LOSSES[name])
    batch = {"x": torch.zeros(2, ROWS, dtype=torch.int64), "y": torch.full((2, ROWS), 3)}
    wanted = module(**batch)
    assert wanted * 2 * ROWS > torch.finfo(torch.float16).max
    graph = trace(module.half(), batch, compare=False)
    found = interpret(graph, dict(module.named_parameters()), batch)
    assert found.dtype == torch.float16
    assert found.item() == pytest.approx(wanted.item(), rel=2e-3)
