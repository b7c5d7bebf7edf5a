from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from captured import Net, batch_of, eagerly, plain, refused
from check import error, interpret
from torch.nn import functional as F

from partitioner import trace
from partitioner.comparing.graph_float64 import promote


class Nested(Net):
    """Samples, what belongs to all of them, and what is no tensor."""

    def forward(self, inputs: Any, y: torch.Tensor, scale: Any, mask: Any = None, times: int = 1) -> torch.Tensor:
        assert mask is None
        x = inputs["x"] + inputs["more"][0] * times + inputs["positions"]
        return super().forward(x * scale, y)


def nested(samples: int = 4) -> dict[str, Any]:
    given = batch_of(samples)
    inputs = {"x": given["x"], "more": [given["x"] + 1], "positions": torch.arange(3.0)[:, None]}
    return {"inputs": inputs, "y": given["y"], "scale": torch.tensor(0.5), "mask": None, "times": 2}


def _tensors(batch: Any) -> dict[str, torch.Tensor]:
    inputs = batch["inputs"]
    found = {"inputs.x": inputs["x"], "inputs.more.0": inputs["more"][0], "inputs.positions": inputs["positions"]}
    found |= {"y": batch["y"], "scale": batch["scale"]}
    return {n: t.double() if t.is_floating_point() else t for n, t in found.items()}


def test_nested_batches_have_dotted_names_and_only_some_carry_samples() -> None:
    model, batch = Nested(plain, 2), nested()
    graph = trace(model, batch)
    assert graph.inputs == ("inputs.x", "inputs.more.0", "inputs.positions", "y", "scale")
    assert graph.batched == ("inputs.x", "inputs.more.0", "y")
    assert graph.plain == {"mask": None, "times": 2}
    model = model.double()
    given = _tensors(batch)
    inputs = {"x": given["inputs.x"], "more": [given["inputs.more.0"]], "positions": given["inputs.positions"]}
    eager = {**batch, "inputs": inputs, "scale": given["scale"]}
    assert error(interpret(promote(graph), model, given), eagerly(model, eager)) < 1e-12


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"x": torch.zeros(2, 3), "y": object()}, "y is a object"), ({"x": torch.zeros(())}, "no tensor .* dimension"),
        ({"a": {"b": torch.zeros(2)}, "a.b": torch.zeros(2)}, "one dotted name"),
    ],
)  # fmt: skip
def test_batches_that_cant_be_read_are_refused(batch: Any, words: str) -> None:
    assert re.search(words, refused(Net(plain, 2), batch))


def test_a_size_that_is_as_frequent_as_the_number_of_samples_is_not_taken_for_it() -> None:
    class Placed(Net):
        def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            h = self.blocks[0](self.first(x + positions[:, None]))
            return F.cross_entropy(self.last(h).flatten(0, 1), x.flatten(0, 1)[:, 0].detach().long() % 5)

    graph = trace(Placed(plain, 1), {"positions": torch.arange(3.0), "x": batch_of()["x"]})
    assert (graph.batch, graph.batched) == (4, ("x",))
