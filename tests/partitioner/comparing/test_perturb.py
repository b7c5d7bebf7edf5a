"""Constants get the same noise everywhere, values stay; a batch of another size is made of its own samples."""

from __future__ import annotations

import torch
from torch import nn

from partitioner.comparing.perturb import perturb
from partitioner.comparing.resample import resample
from partitioner.user_code.batches import flat


def _module(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False)).to(dtype)
    nn.init.zeros_(module[2].weight)
    module.gate, module.tiny = nn.Parameter(torch.zeros((), dtype=dtype)), nn.Parameter(torch.full((4,), 1e-6))
    return module


def test_only_constants_move_by_their_scale_and_alike() -> None:
    module, other, before = _module(), _module(), _module()
    assert perturb(module) == perturb(other) == ("gate", "tiny", "1.weight", "1.bias", "2.weight")
    now, again, old = ({n: p.detach() for n, p in m.named_parameters()} for m in (module, other, before))
    assert all(torch.equal(now[n], again[n]) for n in now)
    assert torch.equal(now["0.weight"], old["0.weight"])
    assert 0 < float((now["1.weight"] - 1).abs().max()) < 0.3
    assert 0 < float(now["2.weight"].abs().max()) < 0.1
    assert float(now["gate"]) != 0
    assert 0 < float((now["tiny"] - 1e-6).abs().max()) < 3e-7
    assert perturb(module) == ("gate",), "a scalar is a constant always, the others no more"


def test_low_precision_moves_too_and_meta_does_not() -> None:
    assert "1.weight" in perturb(_module(torch.bfloat16))
    assert perturb(_module().to("meta")) == ()


def test_samples_are_the_examples_own_and_each_comes_before_any_again() -> None:
    given = {"x": torch.arange(6).reshape(3, 2), "y": torch.arange(3), "table": torch.arange(7)}
    made = resample(given, {"x", "y"}, 8)
    assert made["x"].shape == (8, 2)
    assert torch.equal(made["x"][:, 0] // 2, made["y"]), "rows stay together"
    assert sorted(made["y"][:3].tolist()) == sorted(made["y"][3:6].tolist()) == [0, 1, 2]
    assert made["table"] is given["table"]
    assert all(torch.equal(made[n], resample(given, {"x", "y"}, 8)[n]) for n in made)
    assert len(set(resample(given, {"x", "y"}, 2)["y"].tolist())) == 2
    nested = resample({"in": {"x": given["x"]}, "y": given["y"]}, {"in.x", "y"}, 8)
    assert torch.equal(nested["in"]["x"], made["x"])
    assert flat(nested).tensors.keys() == {"in.x", "y"}
