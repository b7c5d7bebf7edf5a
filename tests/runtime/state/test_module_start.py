"""Initial values of a module on meta: as torch or transformers would start it, equal under every plan."""

from __future__ import annotations

import plans
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from partitioner.lowering.program import Parameter, Program
from partitioner.sharding.layout import WHOLE, shard_whole
from runtime.state.deferred_init import name_seed
from runtime.state.module_start import ModuleStart
from runtime.state.parameters import materialize


class Norm(nn.Module):
    """A hand-written norm: it has no reset_parameters, so that on meta nobody knows its values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(5))


class Net(nn.Module):
    """Modules with reset_parameters, one with ``_reset_parameters``, one without, and a parameter of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(7, 5))
        self.linear = nn.Linear(5, 12)
        self.same = nn.Linear(5, 12)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = Norm()


def _program_of(module: nn.Module, tp: int, dims: dict[str, int]) -> Program:
    rows: dict[str, Parameter] = {}
    for name, p in module.named_parameters():
        layout = (shard_whole(dims[name], p.shape[dims[name]], tp) if name in dims else WHOLE,)
        rows[name] = Parameter((name,), tuple(p.shape), p.dtype, True, layout, (0,), p.dtype)
    return plans.of(rows, {"pp": 1, "dp": 1, "tp": tp}, (("tp", tp),))


def _start(
    module: nn.Module, tp: int, dims: dict[str, int], seed: int = 3
) -> tuple[dict[str, torch.Tensor], list[str]]:
    program, parts, unset = _program_of(module, tp, dims), [], []
    for rank in range(tp):
        source = ModuleStart(module, seed)
        parts.append(materialize(program, {"pp": 0, "tp": rank}, source, "cpu"))
        unset = source.unset
    cat = {n: torch.cat([p[n] for p in parts], dims[n]) if n in dims else parts[-1][n] for n in parts[0]}
    return {name: value.detach() for name, value in cat.items()}, unset


DIMS = {"linear.weight": 0, "linear.bias": 0, "position": 1, "attention.in_proj_weight": 0}


def test_a_meta_module_starts_as_torch_starts_it() -> None:
    with torch.device("meta"):
        module = Net()
    found, unset = _start(module, 1, DIMS)
    assert unset == ["position", "norm.weight", "norm.bias"]
    torch.manual_seed(name_seed(3, "linear"))
    linear = nn.Linear(5, 12)
    assert torch.equal(found["linear.weight"], linear.weight)
    assert torch.equal(found["linear.bias"], linear.bias)
    assert not torch.equal(found["linear.weight"], found["same.weight"])
    assert 0 < found["attention.in_proj_weight"].abs().max() <= (6 / (12 + 4)) ** 0.5
    assert torch.equal(found["attention.in_proj_bias"], torch.zeros(12))
    assert torch.equal(found["norm.weight"], torch.ones(5))
    assert torch.equal(found["norm.bias"], torch.zeros(5))
    assert 0.01 < found["position"].std() < 0.03
    assert all(p.is_meta for p in module.parameters())


@pytest.mark.parametrize("tp", [2, 3, 4])
def test_every_plan_starts_from_the_same_weights(tp: int) -> None:
    with torch.device("meta"):
        module = Net()
    one, unset_one = _start(module, 1, DIMS)
    found, unset = _start(module, tp, DIMS)
    assert unset == unset_one
    assert all(torch.equal(found[name], one[name]) for name in one)
    other, _ = _start(module, 1, DIMS, seed=4)
    assert not torch.equal(other["linear.weight"], one["linear.weight"])


def test_the_random_state_of_the_caller_is_left_alone_and_does_not_matter() -> None:
    with torch.device("meta"):
        module = Net()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, _ = _start(module, 1, {})
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(9)
    second, _ = _start(Net(), 1, {})
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_transformers_models_start_as_transformers_says() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=8, n_embd=64, n_head=2, vocab_size=200))
        llama = AutoModelForCausalLM.from_config(
            LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
        )
    found, unset = _start(model, 1, {})
    assert unset == []
    assert abs(found["transformer.h.3.mlp.c_fc.weight"].std().item() - 0.02) < 0.001
    assert abs(found["transformer.h.3.mlp.c_proj.weight"].std().item() - 0.02 / 16**0.5) < 0.0005
    assert torch.equal(found["transformer.ln_f.weight"], torch.ones(64))
    found, unset = _start(llama, 1, {})
    assert unset == []
    assert torch.equal(found["model.norm.weight"], torch.ones(64))
    assert abs(found["lm_head.weight"].std().item() - 0.02) < 0.001


def test_a_given_initialization_is_used_where_nothing_else_is_known() -> None:
    source = ModuleStart(Net(), 3, lambda name, shape: torch.full(shape, float(len(name))))
    program = _program_of(Net(), 1, {})
    found = materialize(program, {"pp": 0, "tp": 0}, source, "cpu")
    assert torch.equal(found["position"], torch.full((7, 5), 8.0))
    assert not torch.equal(found["linear.bias"], torch.full((12,), 11.0))
