"""The door to training: names in the place of objects, options told apart, the state handed out again."""

from __future__ import annotations

from pathlib import Path

import plans
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from partitioner import Cluster, search, trace
from partitioner.errors import InputError
from runtime import parallelize


class Tied(nn.Module):
    """Has a tied weight, a frozen one, and buffers that are, and are not, of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight
        self.up = nn.Linear(8, 8)
        self.up.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(0.5))
        self.register_buffer("unread", torch.arange(3.0))
        self.register_buffer("kept_nowhere", torch.ones(2), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.up(self.embed(tokens)).tanh() * self.scale
        return F.cross_entropy(self.head(x)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _batch() -> dict[str, torch.Tensor]:
    return {"tokens": torch.arange(40).view(4, 10) * 7 % 12}


def _state(rank: int, folder: str, pins: dict[str, str | int]) -> None:
    torch.manual_seed(1)
    model = Tied()
    engine = parallelize(model, _batch(), global_batch=4, cluster="local-cpu", pins=pins, lr=0.1)
    n = 4 // engine.groups.size("dp")
    first = n * engine.groups.coordinates["dp"]
    mine = {"tokens": _batch()["tokens"][first : first + n]}
    before = {name: t.clone() for name, t in model.state_dict().items()}
    engine.step(mine)
    state = engine.state_dict()
    engine.export(folder)
    loss = engine.evaluate(mine)
    if rank:
        assert state == {}
        return
    assert {name: torch.equal(before[name], t) for name, t in state.items()} == {
        "embed.weight": False, "head.weight": False, "up.weight": False, "up.bias": True, "scale": True, "unread": True,
    }  # fmt: skip
    model.load_state_dict(state)
    assert abs(model(**_batch()) - loss) < 1e-6
    written = {name: t for file in Path(folder).glob("*.safetensors") for name, t in load_file(file).items()}
    assert {name: torch.equal(t, state[name]) for name, t in written.items()} == dict.fromkeys(
        ("embed.weight", "up.weight", "up.bias", "scale", "unread"), True
    )


@pytest.mark.parametrize("pins", [{"tp": 2}, {"dp": 2, "zero": 3}])
def test_the_state_by_the_models_own_names(pins: dict[str, str | int], tmp_path: Path) -> None:
    plans.spawn(_state, 2, str(tmp_path), pins)


def test_an_option_that_nobody_takes_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="AdamW takes no option global_bach: global_batch is meant"):
        parallelize(Tied(), _batch(), global_batch=4, global_bach=8)
    with pytest.raises(TypeError, match="SGD takes no option momentun: momentum is meant"):
        parallelize(Tied(), _batch(), global_batch=4, optimizer=torch.optim.SGD, momentun=0.9)


def test_names_and_plans_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="there is no cluster dgx-h10: the nearest is dgx-h100"):
        parallelize(Tied(), _batch(), global_batch=4, cluster="dgx-h10")
    with pytest.raises(InputError, match="pin tq names no decision"):
        parallelize(Tied(), _batch(), global_batch=4, pins={"tq": 2})
    graph = trace(Tied(), _batch(), global_batch=4)
    plan = search(graph, Cluster.load("local-cpu", devices=1), 4)
    with pytest.raises(InputError, match="a plan was given, and a cluster or pins"):
        parallelize(Tied(), _batch(), global_batch=4, plan=plan, pins={"tp": 1})
