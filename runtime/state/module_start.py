"""Values that parameters begin with, without a module that has them; the same under every plan.

    from_seed(seed, initialize)    a function of name and shape
    ModuleStart(module, seed)      a module on meta, or of which only the way it begins is asked for:

    built by deferred_init      what its construction did to the parameter, done again
    built otherwise             what the modules around it have to begin it: reset_parameters, _init_weights
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from partitioner.errors import InputError
from partitioner.lowering.program import Parameter
from partitioner.user_code.compiled import unwrapped
from runtime.state.deferred_init import name_seed, recording_of
from runtime.state.parameters import Source, checked
from runtime.state.shard_pieces import Part, cut

Initialize = Callable[[str, tuple[int, ...]], torch.Tensor]


def from_seed(seed: int, initialize: Initialize) -> Source:
    """``initialize(name, shape)`` for each full parameter, with torch's CPU generator seeded by (seed, name)."""

    def read(parameter: Parameter, part: Part) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(name_seed(seed, parameter.name))
            return cut(checked(initialize(parameter.name, parameter.shape), parameter, "initialize"), part)

    return read


class ModuleStart:
    """The values with which a module on meta (or real: its weights are not read) begins, as a source of parameters.

    What ``deferred_init`` has built begins as its construction says, whatever ``seed``. Of another nothing is known but
    its modules: for each that owns parameters, real memory is given to them alone; then, as construction would, from it
    to the root, every module on the way runs its ``reset_parameters`` (or ``_reset_parameters``) and is handed to the
    ``_init_weights(module)`` of the nearest module around it that has one, all under a seed made of (seed, module
    name); what an ``__init__`` does to weights by other means can't be seen. A parameter that nothing has set comes
    from ``initialize``, and its name is added to ``unset``; the default draws normal(0, 0.02) for two and more
    dimensions, else ones for the first parameter of a module (a norm's weight) and zeros for the others (biases).
    """

    def __init__(self, module: nn.Module, seed: int, initialize: Initialize | None = None) -> None:
        self.unset: list[str] = []
        self._seed, self._initialize = seed, initialize
        with unwrapped(module) as plain:
            noted = {p: recording_of(p) for p in plain.parameters()}
        self._noted = _Noted(module) if any(noted.values()) else None
        self._values = self._noted or _ByModules(module, seed)

    @property
    def draws(self) -> str:
        """A word that is the same on ranks whose modules were built of the same draws; "" where none was noted."""
        return " ".join(sorted({r.draws for r in self._noted.recordings})) if self._noted else ""

    def __call__(self, parameter: Parameter, part: Part) -> torch.Tensor:
        """The part of one parameter. Raises InputError for one that the module does not have, or that was changed
        since ``deferred_init`` built it, or added."""
        values, is_first = self._values(parameter.name)
        if bool(values.isnan().any()):
            self.unset.append(parameter.name)
            values = self._fallback(parameter.name, tuple(values.shape), is_first)
        return cut(checked(values, parameter, "the module"), part)

    def _fallback(self, name: str, shape: tuple[int, ...], first: bool) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(name_seed(self._seed, name))
            if self._initialize is not None:
                return self._initialize(name, shape)
            return torch.randn(shape) * 0.02 if len(shape) > 1 else torch.full(shape, float(first))


class _Noted:
    """What construction did, of a module, or of parts of it beside which others are real."""

    def __init__(self, module: nn.Module) -> None:
        with unwrapped(module) as plain:
            self._parameters = dict(plain.named_parameters(remove_duplicate=False))
            own = ([n for n, _ in m.named_parameters(name, recurse=False)] for name, m in plain.named_modules())
            self._first = {names[0] for names in own if names}
        found = (recording_of(p) for p in self._parameters.values())
        self.recordings = {row[0] for row in found if row is not None}

    def __call__(self, name: str) -> tuple[torch.Tensor, bool]:
        """The values of a parameter, NaN where nothing has set them, and whether it is its module's first."""
        if name not in self._parameters:
            raise InputError(f"the module has no parameter {name}: it is not the model of this Program")
        parameter = self._parameters[name]
        recording, as_built = recording_of(parameter) or (None, True)
        if recording is None and not parameter.is_meta:
            return parameter.detach(), name in self._first
        values = recording.values(parameter) if recording and as_built else None
        if values is None:
            what = "changed after" if recording else "added to, or replaced in, a module that"
            raise InputError(f"{name} was {what} deferred_init had built it: do so in what builds it")
        return values, name in self._first


class _ByModules:
    """What modules have to begin their parameters; the values of the last are kept, since its next one comes next."""

    def __init__(self, module: nn.Module, seed: int) -> None:
        self._seed = seed
        with unwrapped(module) as plain:
            self._root = copy.deepcopy(plain, {id(p): _on_meta(p) for p in plain.parameters()})
        self._last: tuple[str, dict[str, torch.Tensor]] = ("", {})

    def __call__(self, name: str) -> tuple[torch.Tensor, bool]:
        """The values of a parameter, NaN where nothing has set them, and whether it is its module's first."""
        owner, _, own = name.rpartition(".")
        if self._last[0] != owner or own not in self._last[1]:
            self._last = (owner, self._of_module(owner))
        if own not in self._last[1]:
            raise InputError(f"the module has no parameter {name}: it is not the model of this Program")
        return self._last[1][own], own == next(iter(self._last[1]))

    def _of_module(self, owner: str) -> dict[str, torch.Tensor]:
        names = owner.split(".") if owner else []
        chain = [_submodule(self._root, ".".join(names[:n])) for n in range(len(names), -1, -1)]
        own = dict(chain[0].named_parameters(recurse=False, remove_duplicate=False))
        for name, parameter in own.items():
            chain[0].register_parameter(name, _empty(parameter))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(name_seed(self._seed, owner))
            for n, module in enumerate(chain):
                _start(module, chain[n:])
        values = {name: p.detach() for name, p in chain[0].named_parameters(recurse=False, remove_duplicate=False)}
        for name, parameter in own.items():
            chain[0].register_parameter(name, parameter)
        return values


def _start(module: nn.Module, upward: list[nn.Module]) -> None:
    for name in ("reset_parameters", "_reset_parameters"):
        if callable(getattr(module, name, None)):
            getattr(module, name)()
    methods = (getattr(m, "_init_weights", None) for m in upward)
    initialize = next(filter(callable, methods), None)
    if initialize is not None:
        initialize(module)


def _submodule(root: nn.Module, name: str) -> nn.Module:
    try:
        return root.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"the module has no part {name}: it is not the model of this Program") from error


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    """Memory on the CPU whose every value says that nothing has set it."""
    empty = torch.full(parameter.shape, torch.nan, dtype=torch.float32)
    return nn.Parameter(empty, parameter.requires_grad)
