"""A module built without memory begins as its construction says, whatever it does to its parameters."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import init

from partitioner.errors import InputError
from partitioner.lowering.program import Parameter
from runtime import deferred_init
from runtime.state.module_start import ModuleStart
from runtime.state.shard_pieces import part
from tools.models.load import load

GPT = "examples/gpt.py:model"


def values_of(module: nn.Module) -> dict[str, torch.Tensor]:
    source, found = ModuleStart(module, 3), dict[str, torch.Tensor]()
    for name, p in module.named_parameters():
        shape = tuple(p.shape)
        parameter = Parameter((name,), shape, p.dtype, True, (), (0,), p.dtype)
        found[name] = source(parameter, part(shape, (), ()))
    assert source.unset == []
    return found


def free_function(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        init.constant_(module.weight, 0.25)
        init.zeros_(module.bias)


class Net(nn.Module):
    """All ways in which constructors begin parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.applied = nn.Linear(6, 4)
        self.applied.apply(free_function)
        self.scale = nn.Parameter(1e-5 * torch.ones(5))
        self.given = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.of_numpy = nn.Parameter(torch.from_numpy(np.linspace(0, 1, 4, dtype=np.float32)))
        self.rows = nn.Embedding(8, 4, padding_idx=0)
        self.rows.weight.data[1:3] = 7.0
        with torch.no_grad():
            self.rows.weight[3].copy_(torch.full((4,), 2.0))
        self.source = nn.Linear(6, 6)
        self.same = nn.Linear(6, 6)
        self.same.weight.data.copy_(self.source.weight)
        self.turned = nn.Parameter(self.source.weight.detach().t().clone() * 2)
        init.orthogonal_(self.source.weight)
        self.sized = nn.Linear(64, 64)
        for name, p in self.named_parameters():
            if name == "sized.weight":
                init.normal_(p, std=0.02 / 8**0.5)
        self.cut = nn.Parameter(init.trunc_normal_(torch.empty(64, 64), std=2.0, a=-2.0, b=2.0))
        self.narrow = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.swapped = nn.Linear(2, 2, bias=False)
        self.swapped.weight.data = torch.eye(2)
        self.drawn_by_numpy = nn.Parameter(torch.tensor(np.random.rand(4)))  # noqa: NPY002
        self.drawn_by_python = nn.Parameter(torch.tensor([random.random()]))  # noqa: S311
        self.tied = nn.Linear(4, 8, bias=False)
        self.tied.weight = self.rows.weight
        self.register_buffer("table", torch.arange(3.0))


SURE = ("applied.weight", "applied.bias", "scale", "given", "of_numpy", "narrow", "swapped.weight")


def test_a_module_begins_as_its_construction_says() -> None:
    module, eager = deferred_init(Net), dict(Net().named_parameters())
    assert all(p.is_meta for p in module.parameters())
    assert not module.get_buffer("table").is_meta
    found = values_of(module)
    assert found.keys() == eager.keys()
    for name in SURE:
        torch.testing.assert_close(found[name], eager[name].detach(), rtol=0, atol=0)
    rows = found["rows.weight"]
    assert rows[0].eq(0).all() and rows[1:3].eq(7).all() and rows[3].eq(2).all()  # noqa: PT018
    assert 0.5 < rows[4:].std() < 2
    torch.testing.assert_close(found["source.weight"] @ found["source.weight"].T, torch.eye(6))
    assert torch.equal(found["turned"], found["same.weight"].T * 2)  # both of what source was before
    assert abs(found["sized.weight"].std() * 8**0.5 / 0.02 - 1) < 0.1
    assert found["cut"].abs().max() <= 2 and abs(found["cut"].std() - 1.08) < 0.1  # noqa: PT018
    assert found["narrow"].dtype == torch.bfloat16


def test_every_rank_finds_the_same_and_another_seed_another() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    state = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    first, second = values_of(deferred_init(Net)), values_of(deferred_init(Net))
    assert state[0] == random.getstate()
    assert (state[1] == np.random.get_state()[1]).all()  # type: ignore[index]  # noqa: NPY002
    assert all(torch.equal(first[n], second[n]) for n in first)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        other = values_of(deferred_init(Net))
    assert not torch.equal(first["sized.weight"], other["sized.weight"])
    assert not torch.equal(first["rows.weight"], other["rows.weight"])


class Forgotten(nn.Module):
    """One parameter that nothing sets, and one whose second row alone is set."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(3)), nn.Parameter(torch.empty(2, 3))
        with torch.no_grad():
            self.bias[1].zero_()


def test_what_construction_sets_nothing_in_is_named() -> None:
    module = deferred_init(Forgotten)
    source = ModuleStart(module, 3)
    for name, p in module.named_parameters():
        source(Parameter((name,), tuple(p.shape), p.dtype, True, (), (0,), p.dtype), part(tuple(p.shape), (), ()))
    assert source.unset == ["weight", "bias"]


def _replaced(module: nn.Module) -> nn.Module:
    module.applied.weight = nn.Parameter(torch.empty(4, 6, device="meta"))  # type: ignore[union-attr]
    return module


def _written(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module.applied.weight.fill_(9.0)  # type: ignore[union-attr, operator]
    return module


def _zeroed(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        init.zeros_(parameter)


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "replaced": _replaced, "written": _written, "applied": lambda m: m.apply(_zeroed),
    "to float64": lambda m: m.to(torch.float64),
    "with another": lambda m: nn.Sequential(m, nn.Linear(2, 2, device="meta")),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_afterwards_is_named(change: str) -> None:
    with pytest.raises(InputError, match=r"was (changed|added|replaced).* deferred_init had built it"):
        values_of(CHANGES[change](deferred_init(Net)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_a_part_of_another_module_begins_as_it_does_alone() -> None:
    whole = nn.Sequential(deferred_init(Net), nn.Linear(2, 3))
    found, alone = values_of(whole), values_of(deferred_init(Net))
    assert all(torch.equal(found[f"0.{name}"], value) for name, value in alone.items())
    assert torch.equal(found["1.weight"], whole[1].weight)  # which is real
    compiled = deferred_init(lambda: torch.compile(Net()))  # type: ignore[arg-type, return-value]
    assert all(torch.equal(a, b) for a, b in zip(values_of(compiled._orig_mod).values(), alone.values(), strict=True))


def test_a_copy_is_begun_by_its_modules() -> None:
    """Nothing is known of how it was built."""
    found = values_of(nn.Sequential(copy.deepcopy(deferred_init(nn.Linear, 3, 4))))
    assert found["0.weight"].abs().max() <= 3**-0.5


class Narrow(nn.Module):
    """Made under another default dtype than values are asked for under."""

    def __init__(self) -> None:
        super().__init__()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        self.ones, self.drawn = nn.Parameter(torch.ones(4)), nn.Parameter(torch.randn(64))
        torch.set_default_dtype(before)


class Aliased(nn.Module):
    """Parameters that are written to by other names, or lie in one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.later = weight = nn.Parameter(torch.zeros(3))
        init.ones_(weight)
        weight.kept = True  # type: ignore[attr-defined]
        rows = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
        self.rows = nn.ParameterList(rows)
        for n, row in enumerate(rows):
            init.constant_(row, 3.0 + n)
        both = torch.zeros(2, 3)
        self.first, self.second = nn.Parameter(both[0]), nn.Parameter(both[1])
        both.fill_(5.0)
        with torch.no_grad():
            self.second += 1


class Beside(nn.Module):
    """Buffers that are made of what parameters are made of, and of them."""

    def __init__(self) -> None:
        super().__init__()
        drawn, mask = torch.randn(6), torch.rand(6) > 0.5
        self.weight = nn.Parameter(drawn)
        self.register_buffer("was", drawn.clone())
        self.register_buffer("mask", mask)
        self.masked = nn.Linear(6, 1, bias=False)
        self.masked.weight.data.mul_(mask)
        self.register_buffer("twice", self.masked.weight.detach().clone() * 2)
        self.chosen = nn.Parameter(torch.tensor(torch.randperm(100).tolist(), dtype=torch.float32))
        saved = io.BytesIO()
        torch.save(torch.full((2,), 2.0), saved)
        saved.seek(0)
        self.loaded = nn.Parameter(torch.load(saved).mul_(2))
        self.of_array = nn.Parameter(torch.from_numpy(_ARRAY).clone())
        _ARRAY.fill(7)


_ARRAY = np.ones(3, dtype=np.float32)


def test_the_default_dtype_is_that_of_the_construction() -> None:
    found = values_of(deferred_init(Narrow))
    assert found["ones"].dtype == found["drawn"].dtype == torch.bfloat16
    assert found["ones"].eq(1).all()
    assert 0.6 < found["drawn"].float().std() < 1.5


def test_parameters_may_have_other_names_and_share_memory() -> None:
    module, eager = deferred_init(Aliased), dict(Aliased().named_parameters())
    found = values_of(module)
    for name, value in eager.items():
        assert torch.equal(found[name], value.detach()), name


def test_buffers_fit_parameters() -> None:
    module = deferred_init(Beside)
    found = values_of(module)
    assert not any(buffer.is_meta for buffer in module.buffers())
    assert torch.equal(found["weight"], module.get_buffer("was"))
    assert torch.equal(found["masked.weight"] != 0, module.get_buffer("mask")[None])
    assert torch.equal(found["masked.weight"] * 2, module.get_buffer("twice"))
    assert found["loaded"].eq(4).all()
    assert found["of_array"].eq(1).all()
    assert torch.equal(found["chosen"], values_of(deferred_init(Beside))["chosen"])


def test_what_hangs_on_meta_tensors_from_elsewhere_is_named() -> None:
    other = nn.Linear(3, 3, device="meta")

    def build() -> nn.Module:
        made = nn.Linear(3, 3)
        made.weight.data.copy_(other.weight)
        return made

    module = deferred_init(build)
    with pytest.raises(InputError, match="weight was changed after deferred_init"):
        values_of(module)


def test_what_draws_nothing_moves_no_draw() -> None:
    """A table that was made before, something that one rank alone looks at."""

    def build(more: bool) -> nn.Module:
        if more:
            torch.zeros(2).add_(1)
        return nn.Linear(4, 4)

    found = [values_of(deferred_init(build, more)) for more in (False, True)]
    assert torch.equal(found[0]["weight"], found[1]["weight"])


MODELS: list[tuple[str, dict[str, object]]] = [
    (GPT, {"hidden": 64, "layers": 2, "vocab": 256}), ("examples/translation/model.py:model", {}),
    ("hf:gpt2", {}), ("hf:llama", {}),
    *((f"hf:{name}", dict[str, object]()) for name in ("t5", "bert", "mixtral", "bloom", "vit", "gemma2", "mamba")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "settings"),
    [pytest.param(*row, id=row[0], marks=() if n < 4 else pytest.mark.parity) for n, row in enumerate(MODELS)],
)
def test_models_begin_as_they_do_with_memory(spec: str, settings: dict[str, object]) -> None:
    eager = dict(load(spec, settings, shrink=True).module.named_parameters())
    found = values_of(load(spec, settings, shrink=True, begins=True).module)
    assert found.keys() == eager.keys()
    for name, value in found.items():
        want = eager[name].detach()
        assert value.dtype == want.dtype
        if want.unique().numel() == 1 or torch.equal(want, value):
            assert torch.equal(want, value), name
            continue
        spread, low, high = want.std(), want.min(), want.max()
        assert abs(value.std() / spread - 1) < 5 / want.numel() ** 0.5, name
        assert abs(value.mean() - want.mean()) < 6 * spread / want.numel() ** 0.5, name
        assert low - 2 * spread <= value.min() <= value.max() <= high + 2 * spread, name
