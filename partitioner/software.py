"""The Software noun: what a training program does with the hardware, and which plans it can express; data, a file a
framework (frameworks/*.toml). The one that executes what is found here is OWN.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from typing import Any

from partitioner.errors import InputError
from partitioner.hardware.checked_table import built, cut, table

OWN = "own"
NOT_MEASURED = ("name", "title", "measured", "plans")  # fields that are no traits
_WHY, _PLANS = "why", "plans"


@dataclass(frozen=True)
class Expressible:
    """Which plans a framework can be told. ``axes`` of the mesh of more than one rank; ``schedules`` by name;
    ``virtual``: at most so many stages a rank; ``zero``: its stages; ``recompute``: ways to, beside none.
    ``collectives``: those that turn one layout of a value into another. ``end_slots``: what is before the blocks, and
    what is behind them, may each take a block's place in the stages. ``zero_groups``: state may be divided inside
    groups of replicas, and held again by the others. ``same_recompute``: as many blocks of each stage are recomputed,
    modules in all blocks."""

    axes: tuple[str, ...]
    schedules: tuple[str, ...]
    virtual: int
    zero: tuple[int, ...]
    recompute: tuple[str, ...]
    collectives: tuple[str, ...]
    end_slots: bool = False
    zero_groups: bool = True
    same_recompute: bool = False


@dataclass(frozen=True)
class Software:
    """What a training program does with the hardware; the defaults are this project's runtime.

    ``title``: its name in words. ``fused``: chains of pointwise ops run as one kernel. ``attention``: the generation of
    fused attention's kernels; that which a device does not name is its fastest. ``overlap_gradients``,
    ``overlap_parameters`` (of sharded optimizers), ``overlap_sends`` (between stages), ``overlap_tensor`` (collectives
    cut into pieces beside the products that make or need them), ``overlap_context`` (keys and values passed from rank
    to rank beside attention on those that are there): what hides behind compute. ``regathers``: of what was gathered
    for a product its part is kept, and gathered again beside the product of its gradient (Korthikanti et al., 2022).
    ``early_stop``: a recompute ends where the last op that keeps something begins, as torch's checkpoint without
    reentrance does.
    ``kept_products``: the share of products whose results are kept where operators are recomputed. ``scatter_sends``:
    of a boundary that all tp ranks hold whole, each sends a part, and the receivers gather it (Narayanan et al., 2021).
    ``balanced``: stages are cut by cost, not by their number of blocks. ``gradients``: in which type those of
    micro-batches are added up beside a model in 16 bits, "" for the model's. Of products in few bits,
    ``quantized_once``: an activation is quantized in forward alone, and kept so for backward; ``weights_once``: a
    weight once a step; else each product quantizes what it reads. ``delayed_scales``: by the scale of an earlier step,
    where the recipe allows it. ``sends_quantized``: what tp gathers for them is quantized before. ``few_bit_weights``:
    their weights are held in few bits alone. ``efficiency``: the share of speed that is left of everything.
    ``dispatch_seconds``: of the host, for one kernel; ``enqueue_seconds``: more of the host, for one collective, a rank
    of its group, in programs whose stages send between nodes. ``measured``: whether these traits were measured on the
    cluster at hand. ``plans``: what it can express; None where that is what is executed here.
    """

    name: str = OWN
    title: str = "this project's runtime"
    fused: bool = False
    attention: str = "flash-2"
    overlap_gradients: bool = True
    overlap_parameters: bool = True
    overlap_sends: bool = True
    overlap_tensor: bool = False
    overlap_context: bool = False
    regathers: bool = False
    early_stop: bool = True
    kept_products: float = 1.0
    scatter_sends: bool = False
    balanced: bool = True
    gradients: str = "float32"
    quantized_once: bool = False
    weights_once: bool = False
    delayed_scales: bool = False
    sends_quantized: bool = False
    few_bit_weights: bool = False
    efficiency: float = 1.0
    dispatch_seconds: float = 0.0
    enqueue_seconds: float = 0.0
    measured: bool = False
    plans: Expressible | None = None

    @property
    def is_executed(self) -> bool:
        """Whether its plans are this project's to run."""
        return self.name == OWN

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a plan file; ``from_dict`` reads it back."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(data: Mapping[str, Any], origin: str = "the software") -> Software:
        """The inverse of ``as_dict``; raises InputError naming the field of ``origin`` that is wrong."""
        data = dict(data)
        plans = data.pop(_PLANS, None)
        if plans is not None:
            where = f"software.{_PLANS}"
            data[_PLANS] = built(Expressible, table(plans, where, origin), where, origin)
        return built(Software, data, "software", origin)

    @staticmethod
    def load(name: str) -> Software:
        """A framework by name; raises InputError for an unknown one, with all of them."""
        if name == OWN:
            return Software()
        return replace(Software.from_dict(_parsed(name)[0], name), name=name)


def frameworks() -> list[str]:
    """All that are known, this project's first."""
    folder = files("partitioner").joinpath("frameworks")
    return [OWN, *sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))]


def framework_reasons(name: str) -> dict[str, str]:
    """By trait, where it comes from."""
    return _parsed(name)[1] if name != OWN else {}


def _parsed(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    names = frameworks()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.0)[0]
        raise InputError(f"no framework {cut(name)} is known: the nearest is {near}; all are {', '.join(names)}")
    data = tomllib.loads(files("partitioner").joinpath("frameworks", f"{name}.toml").read_text())
    return data, data.pop(_WHY, {})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return list(value) if isinstance(value, tuple) else value
