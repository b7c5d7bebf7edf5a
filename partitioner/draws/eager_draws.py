"""The eager module draws what its graph draws: each random op of its forward, met below autograd, is given its site's.

    with eager_draws(model, graph, seed, step, range(6)):
        loss = model(**batch)                         dropout, attention's too, rand, bernoulli_, ... by key
        loss.backward()                               checkpointed forwards run again, and draw the same again

A site is found by the innermost module that runs and the ordinal of the random op in it. A function mode would not
see what torch.nn.functional calls; here dropout in any spelling is one ``bernoulli_``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from partitioner.draws.keyed_draws import Site
from partitioner.draws.random_calls import Draw, is_random, read
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.step_inputs import SAMPLE_KEYS, STEP_KEY
from partitioner.ops.own_ops import mix64, own
from partitioner.samples.samples_first import of_one_sample, samples_back

_RNG_SEED = 0x5EED


@contextmanager
def eager_draws(model: nn.Module, graph: Graph, seed: int, step: int, samples: Sequence[int]) -> Generator[KeyedDraws]:
    """Inside, one forward of ``model``, and its backward, draw as ``graph`` does at ``step`` for these global samples.

    ``graph`` is of ``model``, at any batch size. Torch's random state is left as it was. Raises InputError where a
    draw is not its site's (another distribution or shape), where a site is not drawn, and where the forward seeds
    torch. A draw that the graph does not know is independent of all others, and named in ``unknown``.
    """
    mode = KeyedDraws(graph, seed, step, samples, _one_name(model))
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(_RNG_SEED)
        for handle in _hooks(model, mode.running):
            stack.callback(handle.remove)
        stack.enter_context(mode)
        yield mode
        mode.finish()


def _one_name(model: nn.Module) -> dict[str, str]:
    """Each name of a module mapped to the first that it has in the same parent (``self.second = self.first``)."""
    first: dict[tuple[nn.Module, str], str] = {}
    names = [(name, module) for name, module in model.named_modules(remove_duplicate=False)]
    return {name: first.setdefault((module, name.rpartition(".")[0]), name) for name, module in names}


def _hooks(model: nn.Module, running: list[str]) -> list[torch.utils.hooks.RemovableHandle]:
    """Keep the names of the modules whose forward runs; of several names of a module, the first inside the last."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)

    def enter(module: nn.Module, _: Any) -> None:
        last, known = running[-1] if running else "", names[module]
        inside = [n for n in known if n.startswith(f"{last}." if last else "")]
        own_child = [n for n in inside if n.rpartition(".")[0] == last]
        running.append((own_child or inside or known)[0])

    def leave(*_: Any) -> None:
        running.pop()

    handles = [module.register_forward_pre_hook(enter, prepend=True) for module in names]
    return handles + [module.register_forward_hook(leave, always_call=True) for module in names]


def _places_of(sites: list[fx.Node], one_name: Mapping[str, str]) -> dict[tuple[str, int], fx.Node]:
    """Sites by module and ordinal; those of a module that is called by two names are counted together."""
    names = {(one_name.get(n.meta["site"].module, ""), n.meta["site"].module) for n in sites}
    shared = {name for name, many in Counter(name for name, _ in names).items() if many > 1}
    found: dict[tuple[str, int], fx.Node] = {}
    calls: Counter[str] = Counter()
    for node in sites:
        site: Site = node.meta["site"]
        name = one_name.get(site.module, site.module)
        found[name, calls[name] if name in shared else site.ordinal] = node
        calls[name] += 1
    return found


class KeyedDraws(TorchDispatchMode):
    """Each random op is replaced by its site's draw; ``unknown``: the calls that no site of the graph is.

    What tells calls apart is torch's own random state, which moves on with each: checkpoint brings it back before it
    runs a forward again, and thereby the call's place.
    """

    def __init__(
        self, graph: Graph, seed: int, step: int, samples: Sequence[int], one_name: Mapping[str, str]
    ) -> None:  # fmt: skip
        super().__init__()
        self.sites = _places_of([n for n in graph.nodes.values() if "site" in n.meta], one_name)
        keys = torch.tensor([mix64(seed, step, sample) for sample in samples], dtype=torch.int64)
        self.keys: Mapping[str, torch.Tensor] = {SAMPLE_KEYS: keys, STEP_KEY: torch.tensor(mix64(seed, step))}
        self.running: list[str] = []
        self.unknown: list[str] = []
        self._ordinals: Counter[str] = Counter()
        self._places: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_random(func, args, kwargs):
            return func(*args, **kwargs)
        token = self._token()
        draw = read(func, args, kwargs, str(Site(*self._places[token])))
        if draw is None:
            raise InputError(f"{Site(*self._places[token])} draws inside a kernel, {func}: compare on a CPU")
        result = args[0] if func._schema.is_mutable else _result(func, args, kwargs)
        drawn = self._drawn(token, draw, draw.shape or tuple(result.shape), draw.dtype or result.dtype)
        drawn = drawn.to(result.device)
        return result.copy_(draw.finish(_call, drawn, result.dtype) if draw.finish else drawn)

    def _token(self) -> int:
        """The number of this call in ``_places``, the same when checkpoint makes it again in a backward."""
        token, module = int(torch.randint(1 << 62, ())), self.running[-1] if self.running else ""
        if token not in self._places:
            if torch._C._current_graph_task_id() != -1:  # pyright: ignore[reportPrivateUsage]
                raise InputError(
                    f"{module or 'the model'} draws anew when backward runs it again: let checkpoint preserve_rng_state"
                )
            self._places[token] = module, self._ordinals[module]
            self._ordinals[module] += 1
        return token

    def _drawn(self, token: int, draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        node = self.sites.get(self._places[token])
        if node is None:
            self.unknown.append(str(Site(*self._places[token])))
            key = torch.tensor(mix64(int(self.keys[STEP_KEY]), token))
            return own.draw(key, draw.distribution, draw.parameters, 0, shape, dtype)
        site: Site = node.meta["site"]
        keys, distribution, parameters, number, one = _arguments(node)
        if (draw.distribution, draw.parameters, shape) != (distribution, parameters, self._whole(site, shape, one)):
            raise InputError(
                f"{site} draws {draw.distribution} {list(draw.parameters)} in {list(shape)}, its traced graph "
                f"{distribution} {list(parameters)} in {list(one)}: what is drawn must not change from batch to batch"
            )
        drawn = own.draw(self._keys(keys), distribution, parameters, number, one, dtype)
        return drawn if site.place is None else samples_back(_call, drawn, shape, site.place)

    def _whole(self, site: Site, shape: tuple[int, ...], one: list[int]) -> tuple[int, ...]:
        """``shape`` if it is what these samples draw together, else what each draws."""
        if site.place is None:
            return tuple(one)
        (segment,), samples = site.place.segments, len(self.keys[SAMPLE_KEYS])
        fits = len(shape) > site.place.dim and shape[site.place.dim] == segment.repeat * samples * segment.granule
        return shape if fits and of_one_sample(shape, site.place) == one else tuple(one)

    def _keys(self, node: fx.Node) -> torch.Tensor:
        """What a node of keys is for these samples."""
        if node.op == "placeholder":
            return self.keys[node.meta["source"]]
        keys, unit = node.args
        assert isinstance(keys, fx.Node)
        return own.site_keys(self._keys(keys), unit)

    def finish(self) -> None:
        """Raise InputError if a site was not drawn, or if the forward seeded torch."""
        missing = [node.meta["site"] for place, node in self.sites.items() if place not in self._places.values()]
        if missing:
            raise InputError(f"{missing[0]} is in the traced graph, and the module does not make it")
        if torch.initial_seed() != _RNG_SEED:
            raise InputError("the model seeds torch in its forward: leave that out, the run's seed is the plan's")


def _arguments(node: fx.Node) -> tuple[fx.Node, str, tuple[float, ...], int, list[int]]:
    """Keys, distribution, parameters, number and one sample's shape of a site."""
    args: Any = node.args
    if node.target == own.dropout.default:
        return args[2], "bernoulli", (1.0 - args[1],), args[3], list(node.meta["val"].shape[1:])
    return args[0], args[1], tuple(args[2]), args[3], list(args[4])


def _call(op: Any, *args: Any) -> Any:
    return op(*args)


def _result(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """Room for what a call returns."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    device = kwargs.get("device") or (tensors[0].device if tensors else torch.get_default_device())
    named = {"device": "meta"} if any(a.name == "device" for a in func._schema.arguments) else {}
    meta = func(*tree_map(_to_meta, args), **{**tree_map(_to_meta, kwargs), **named})
    return torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device=device)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value
