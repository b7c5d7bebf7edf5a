"""Groups of parameters as training runs have them: decay on matrices alone, learning rates by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float = 0.0,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """For an optimizer: ``parallelize(..., optimizer=lambda named: AdamW(parameter_groups(named, 3e-4, 0.1)))``.

    Weights of two dimensions and more decay; biases, norms and other vectors do not (GPT-3's recipe; Brown et al.,
    2020, appendix B). ``rates``: factors of ``lr`` by pattern of parameter names (``{"embed.*": 0.1}``), the first that
    fits, 1 where none does; a group keeps its factor where a run goes on with another rate. Every rank has the same
    groups in the same order, some of them empty, so that a checkpoint of one plan is loaded by another.
    """
    factors, rows = {"*": 1.0} if rates is None else dict(rates), list(named)
    factors.setdefault("*", 1.0)  # behind all others
    groups: dict[tuple[str, bool], dict[str, Any]] = {
        (pattern, decays): {
            "params": [], "lr": lr * factor, "lr_factor": factor, "weight_decay": weight_decay if decays else 0.0,
        }
        for pattern, factor in factors.items() for decays in (True, False)
    }  # fmt: skip
    for name, parameter in rows:
        pattern = next(p for p in factors if fnmatchcase(name, p))
        groups[pattern, parameter.dim() > 1]["params"].append(parameter)
    return list(groups.values())
