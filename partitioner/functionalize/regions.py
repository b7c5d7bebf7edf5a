"""Regions of a forward, without gradient or under autocast, noted on the ops that export captures in them.

    forward     with autocast: a = f(x); with no_grad: b = g(a)
    captured    enter_autocast   f   set_grad_enabled(False)   g   set_grad_enabled(True)   exit_autocast
    noted       -                f   -                         g   -                        -
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._export.passes import replace_set_grad_with_hop_pass as grad_regions
from torch.amp import autocast_mode

from partitioner.user_code.uncapturable import RaisedInModel

_UNHEARD = ".*CUDA is not available.*"  # torch's word for autocast("cuda") where there is no GPU: it casts nothing


@dataclass(frozen=True)
class Autocast:
    """A ``torch.autocast`` that is entered: what it was given."""

    device_type: str
    dtype: torch.dtype
    enabled: bool


@dataclass(frozen=True)
class Region:
    """Where an op stands: whether it has a gradient, the autocasts around it, innermost last.

    ``outermost`` is the number of the outermost autocast, to whose end torch keeps the casts of parameters.
    """

    gradient: bool = True
    autocasts: tuple[Autocast, ...] = ()
    outermost: int = 0

    def autocast(self, device_type: str) -> Autocast | None:
        """The one that decides for tensors of ``device_type``; None outside of any."""
        return next((a for a in reversed(self.autocasts) if a.device_type == device_type), None)

    @property
    def casting(self) -> tuple[Autocast, ...]:
        """Those that decide for a type of device and are enabled."""
        types = dict.fromkeys(a.device_type for a in self.autocasts)
        return tuple(a for a in map(self.autocast, types) if a is not None and a.enabled)


@contextmanager
def noted_regions() -> Generator[None]:
    """Inside, ``torch.export`` notes each op's ``Region`` as ``meta["region"]`` and makes no sub-graphs of regions.

    Export's own pass loses a no_grad inside an autocast: it looks for the region's start at the head of a part that it
    splits at every change of gradient mode. Raises ValueError in the model's line that enters an autocast for GPUs on a
    machine without one, which torch would ignore with a warning.
    """
    own = grad_regions.replace_set_grad_with_hop_pass
    grad_regions.replace_set_grad_with_hop_pass = _note_regions
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", _UNHEARD)
            yield
    except UserWarning as warning:
        raise ValueError(FOREIGN.format("cuda")).with_traceback(warning.__traceback__) from warning
    except RaisedInModel as raised:
        if not isinstance(raised.error, UserWarning):
            raise
        error = ValueError(FOREIGN.format("cuda")).with_traceback(raised.error.__traceback__)
        raise RaisedInModel(error) from raised
    finally:
        grad_regions.replace_set_grad_with_hop_pass = own


FOREIGN = (
    "torch.autocast({0!r}) would cast on another device than the one that it is traced for: "
    "name the tensors' own (x.device.type), or enabled=False"
)


def _note_regions(module: fx.GraphModule, signature: Any) -> tuple[fx.GraphModule, Any]:
    """Export's pass over regions, in whose place this one runs: the graph stays flat."""
    marks: list[fx.Node] = []
    for node, region in _walk(module.graph):
        if region is None:
            marks.append(node)
        else:
            node.meta["region"] = region
    for node in reversed(marks):
        module.graph.erase_node(node)
    module.recompile()
    return module, signature


def _walk(graph: fx.Graph) -> Iterator[tuple[fx.Node, Region | None]]:
    """Each call with its region; None for the calls that begin and end one."""
    gradient, autocasts, outermost = True, list[Autocast](), 0
    for node in graph.nodes:
        region = None
        if node.op != "call_function":
            continue
        if node.target is torch._C._set_grad_enabled:  # pyright: ignore[reportPrivateUsage]
            gradient = bool(node.args[0])
        elif node.target is autocast_mode._enter_autocast:  # pyright: ignore[reportPrivateUsage]
            outermost += not autocasts
            autocasts.append(Autocast(*node.args[:3]))
        elif node.target is autocast_mode._exit_autocast:  # pyright: ignore[reportPrivateUsage]
            autocasts.pop()
        else:
            region = Region(gradient, tuple(autocasts), outermost)
        yield node, region


def region_of(node: fx.Node) -> Region:
    """Where ``node`` stands; outside of every region if nothing is noted."""
    return node.meta.get("region", Region())
