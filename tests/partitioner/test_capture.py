"""What a model does beside its ops, and what it returns: run as in the eager module, or refused by name."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from check import error, interpret
from test_kept_functions import Middle, Net, assert_equal, batch_of, eagerly
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from partitioner import trace
from partitioner.errors import InputError
from partitioner.outputs import loss_of
from partitioner.promote import promote


def plain(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
    return h


def refused(model: nn.Module, batch: Any = None) -> str:
    with pytest.raises(InputError) as caught:
        trace(model, batch or batch_of())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# hooks


def _more(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 1.5


def _less(module: nn.Module, arguments: Any, keywords: Any) -> Any:
    return tuple(0.5 * a for a in arguments), keywords


def test_forward_hooks_run() -> None:
    """Also those that change what goes in or comes out, on blocks that look alike, and on the model itself."""
    model = Net(plain)
    for n, block in enumerate(model.blocks):
        block.register_forward_hook(_more if n % 2 else lambda m, a, o: o + 1)
        block.register_forward_pre_hook(_less, with_kwargs=True)
    model.register_forward_hook(lambda module, arguments, output: output * 3)
    assert_equal(model, batch_of())


def test_global_forward_hooks_run() -> None:
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, arguments, output: output * 1.25 if isinstance(module, nn.LayerNorm) else None
    )
    try:
        assert_equal(Net(plain), batch_of())
    finally:
        handle.remove()


HOOKS: dict[str, tuple[Callable[[Net], Any], str]] = {
    "full backward": (lambda m: m.blocks[1].register_full_backward_hook(lambda *a: None), "module blocks.1 has a back"),
    "backward pre": (lambda m: m.blocks[1].register_full_backward_pre_hook(lambda *a: None), "module blocks.1 has a "),
    "backward": (lambda m: m.last.register_backward_hook(lambda *a: None), "module last has a backward hook"),
    "parameter": (lambda m: m.first.weight.register_hook(lambda g: g), "parameter first.weight has a gradient hook"),
    "accumulated": (
        lambda m: m.first.bias.register_post_accumulate_grad_hook(lambda p: None),
        "parameter first.bias has a gradient hook .register_post_acc",
    ),
    "global": (
        lambda m: nn.modules.module.register_module_full_backward_hook(lambda *a: None), "torch.nn has a global backw",
    ),
    "global pre": (
        lambda m: nn.modules.module.register_module_full_backward_pre_hook(lambda *a: None), "torch.nn has a global",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_run_in_backward_are_refused_by_name(name: str) -> None:
    register, words = HOOKS[name]
    model = Net(plain, 2)
    handle = register(model)
    try:
        assert re.match(words, refused(model))
    finally:
        handle.remove()
    trace(model, batch_of())


def _hooked(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
    h.register_hook(lambda gradient: 2 * gradient)
    return h


def _hooked_parameter(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
    block.up.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    return h


def _hooked_node(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
    h.grad_fn.register_hook(lambda inputs, outputs: None)
    return h


def _packed(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.float()):
        return h * h


@pytest.mark.parametrize(
    ("middle", "words"),
    [
        (_hooked, "Tensor.register_hook"), (_hooked_parameter, "Tensor.register_post_accumulate_grad_hook"),
        (_hooked_node, "grad_fn.register_hook"), (_packed, "saved_tensors_hooks"),
    ],
)  # fmt: skip
def test_hooks_set_in_a_forward_are_refused_where_they_are_set(middle: Middle, words: str) -> None:
    said = refused(Net(middle))
    assert words in said
    assert "in blocks.0 at" in said
    assert "test_capture.py:" in said


def test_checkpoint_hooks_what_is_saved_and_is_none_of_these() -> None:
    assert_equal(Net(lambda block, h, n: checkpoint(block.norm, h, use_reentrant=False)), batch_of())


def test_save_on_cpu_is_left_out_and_said() -> None:
    def middle(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
        with torch.autograd.graph.save_on_cpu():
            return h * h

    graph = assert_equal(Net(middle), batch_of())
    assert [note for note in graph.notes if "save_on_cpu" in note]


# left as it was


class Frozen(Net):
    """A frozen part, in eval, with a dropout that must not run; the rest trains."""

    def __init__(self) -> None:
        super().__init__(plain, 2)
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).requires_grad_(False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(self.encoder(x), y)


def test_each_module_keeps_its_mode() -> None:
    model = Frozen().train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    graph = assert_equal(model, batch_of())
    assert [module.training for module in model.modules()] == modes
    assert "dropout" not in str(graph.module.graph)


def test_a_part_in_training_in_a_model_in_eval_keeps_its_dropout() -> None:
    model = Frozen().eval()
    model.encoder.train()
    assert "dropout" in str(trace(model, batch_of()).module.graph)
    assert model.encoder.training
    assert not model.training


class Counting(Net):
    """Changes about everything in its forward that one can."""

    def __init__(self, fails: bool) -> None:
        super().__init__(plain, 4)
        self.fails, self.calls, self.seen, self.cache = fails, 0, [], {"last": None}
        self.table = torch.zeros(3)
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x.shape)
        self.cache["last"], self.new = x, y
        self.eval()
        np.random.rand()
        random.random()
        torch.manual_seed(5)
        if self.fails:
            raise ValueError("no")
        return super().forward(x + self.mean, y)


def _state(model: Counting) -> list[Any]:
    own = [(n, p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()]
    draws = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    values = {k: repr(v) for k, v in vars(model).items() if not k.startswith("_")}
    modes = [module.training for module in model.modules()]
    return [repr(own), draws, values, modes, [id(p) for p in model.parameters()], repr(list(model.buffers()))]


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_and_the_random_state_are_as_before(fails: bool) -> None:
    model = Counting(fails)
    before = _state(model)
    refused(model)
    assert _state(model) == before


class InTheModel(nn.Module):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw, self.own = draw, random.Random(0)
        self.noise, self.linear = torch.Generator(), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.draw()
        return self.linear(x) * scale


class Drawing(Net):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(plain, 2)
        self.inner = InTheModel(draw)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(self.inner(x), y)


own_generator = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (random.random, "Python's random"), (lambda: float(random.randint(1, 5)), "Python's random"),
        (np.random.rand, "numpy's random"),
    ],
)  # fmt: skip
def test_draws_outside_torch_are_refused_by_name_and_place(draw: Callable[[], float], name: str) -> None:
    said = refused(Drawing(draw))
    assert f"draws from {name}" in said
    assert "in inner at" in said
    assert "test_capture.py:" in said


def test_a_generator_of_the_models_own_counts() -> None:
    model = Drawing(random.random)
    model.inner.draw = model.inner.own.random
    before = model.inner.own.getstate()
    assert "draws from inner.own in its forward, in inner at" in refused(model)
    assert model.inner.own.getstate() == before


def test_a_torch_generator_of_the_models_own_is_refused() -> None:
    class Noisy(Drawing):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.rand(8, generator=self.inner.noise), y)

    assert "a torch.Generator" in refused(Noisy(lambda: 1.0))


def test_what_follows_tracing_draws_as_if_there_had_been_none() -> None:
    random.seed(1)
    torch.manual_seed(1)
    wanted = random.random(), float(torch.rand(()))
    model = Net(plain, 2)
    random.seed(1)
    torch.manual_seed(1)
    trace(model, batch_of())
    assert (random.random(), float(torch.rand(()))) == wanted


# outputs


class Output(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor


@dataclasses.dataclass
class Record:
    logits: torch.Tensor
    objective: torch.Tensor
    auxiliary: torch.Tensor | None = None


class WithLoss:
    def __init__(self, loss: torch.Tensor) -> None:
        self.loss = loss


loss, logits, other = torch.tensor(1.0), torch.zeros(2, 3), torch.tensor(2.0)


@pytest.mark.parametrize(
    "output",
    [
        loss, (logits, loss), (loss, logits), [loss], {"loss": loss, "auxiliary": other}, {"objective": loss},
        Output(logits, loss), Record(logits, loss), WithLoss(loss), (logits, {"loss": loss}), (loss, torch.tensor(3)),
        {"loss": loss, "parts": {"loss": other}}, (logits, loss, None), ((loss,), (logits, [logits])),
    ],
)  # fmt: skip
def test_the_loss_is_the_one_scalar_or_the_one_called_so(output: Any) -> None:
    assert loss_of(output) is loss


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (logits, r"scalar loss.* it returned a tensor of shape \(2, 3\) and float32"),
        ((logits, None), "returned tuple"),
        ((loss, other), r"2 scalars \(0, 1\)"), (Record(logits, loss, other), "objective, auxiliary"), (3.0, "float"),
        ([{"loss": loss}, {"loss": other}], "0.loss, 1.loss"), (torch.tensor(3), "int64"), ({"loss": None}, "dict"),
    ],
)  # fmt: skip
def test_other_outputs_are_refused(output: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        loss_of(output)


def test_a_model_that_returns_logits_and_loss_is_traced() -> None:
    class Both(Net):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return self.last(x), super().forward(x, y)

    assert_equal(Both(plain, 2), batch_of())


# sizes and numbers that hang on values


VALUES: dict[str, tuple[Middle, str]] = {
    "mask": (lambda b, h, n: h + h[h > 0].sum(), "the size of the result depends on values"),
    "nonzero": (lambda b, h, n: h + h.nonzero().sum(), "the size of the result"),
    "where": (lambda b, h, n: h + torch.where(h > 0)[0].sum(), "the size of the result"),
    "masked_select": (lambda b, h, n: h + h.masked_select(h > 0).sum(), "the size of the result"),
    "unique": (lambda b, h, n: h + h.unique().sum(), "the size of the result"),
    "repeat": (lambda b, h, n: h + h.repeat_interleave((h[:, 0, 0] > 0).long(), 0).sum(), "the size of the result"),
    "branch": (lambda b, h, n: h if h.sum() > 0 else -h, "a branch, a size or a Python number"),
    "item": (lambda b, h, n: h * h.sum().item(), "a number is read out of a tensor"),
    "tolist": (lambda b, h, n: h * h.sum((1, 2)).tolist()[0], "a number is read out of a tensor"),
    "range": (lambda b, h, n: sum([h for _ in range(int(h.sum()))], h), "depend"),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_hangs_on_values_is_refused_in_one_line_and_silently(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    middle, words = VALUES[name]
    said = refused(Net(middle))
    assert words in said
    assert "one program serves every batch" in said
    assert "can't be traced in blocks.0 at" in said
    assert f'test_capture.py:{middle.__code__.co_firstlineno} ("{name}"' in said
    assert capfd.readouterr() == ("", "")


def test_a_helper_is_blamed_with_its_module_and_its_own_line() -> None:
    def helper(h: torch.Tensor) -> torch.Tensor:
        return h[h > 0]

    assert "in blocks.0 at" in (said := refused(Net(lambda block, h, n: h + helper(h).sum())))
    assert "(return h[h > 0])" in said


def test_sparse_embeddings_are_refused_by_name() -> None:
    class Table(Net):
        def __init__(self, table: nn.Module) -> None:
            super().__init__(plain, 2)
            self.table = table

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x + self.table(y), y)

    said = refused(Table(nn.Embedding(5, 8, sparse=True)))
    assert "sparse=True" in said
    assert "in table at" in said
    bag = nn.EmbeddingBag(5, 8, sparse=True, mode="sum")
    assert "sparse=True" in refused(Table(nn.Sequential(bag, nn.Unflatten(0, (-1, 1)))))


# batches


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
            return F.cross_entropy(self.last(h).flatten(0, 1), torch.arange(12) % 5)

    graph = trace(Placed(plain, 1), {"positions": torch.arange(3.0), "x": batch_of()["x"]})
    assert (graph.batch, graph.batched) == (4, ("x",))


# the shortcut


def test_why_the_shortcut_was_not_taken_is_noted() -> None:
    class Weird(Net):
        """Does, when it is not exported, what fake tensors can't."""

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if tries and tries.pop():
                raise ValueError("not now")
            return super().forward(x, y)

    tries = [True]
    (note,) = trace(Weird(plain), batch_of()).notes
    assert note == "every block was traced by itself: the model can't run on fake tensors (ValueError: not now)"


def test_a_fault_of_the_shortcut_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Iterator[Any]:
        raise KeyError("a fault")

    monkeypatch.setattr("partitioner.runs._runs", broken)
    with pytest.raises(KeyError, match="a fault"):
        trace(Net(plain), batch_of())
