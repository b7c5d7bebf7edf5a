from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captured import Middle, Net, assert_equal, batch_of, plain, refused
from torch import nn
from torch.utils.checkpoint import checkpoint

from partitioner import trace


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
    assert "test_hooks.py:" in said


def test_checkpoint_hooks_what_is_saved_and_is_none_of_these() -> None:
    assert_equal(Net(lambda block, h, n: checkpoint(block.norm, h, use_reentrant=False)), batch_of())


def test_save_on_cpu_is_left_out_and_said() -> None:
    def middle(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
        with torch.autograd.graph.save_on_cpu():
            return h * h

    graph = assert_equal(Net(middle), batch_of())
    assert [note for note in graph.notes if "save_on_cpu" in note]
