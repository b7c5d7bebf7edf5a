"""Ops of ours that a Program may hold beside aten's: schemas, and the implementations that need no process group.

``axis`` "" means that the op is not sharded; the runtime binds every node whose axis is a mesh axis to its group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from partitioner.ops.distributions import sample

_LIBRARY = torch.library.Library("partitioner", "FRAGMENT")
_LIBRARY.define("cross_entropy(Tensor logits, Tensor target, int ignore_index, float label_smoothing) -> Tensor")
_LIBRARY.define(
    "dropout(Tensor x, float p, Tensor sample_keys, int site, str axis='', int dim=0, int[] segments=[]) -> Tensor"
)
_LIBRARY.define(
    "draw(Tensor keys, str distribution, float[] parameters, int site, int[] shape, ScalarType dtype) -> Tensor"
)
_LIBRARY.define("part(Tensor x, int dim, int[] sizes, int index) -> Tensor")
_LIBRARY.define("site_keys(Tensor sample_keys, int unit) -> Tensor")
_LIBRARY.define("top_indices(Tensor x, int k, int dim) -> Tensor")
_LIBRARY.define("expert_linear(Tensor x, Tensor weight, Tensor expert) -> Tensor")

_MASK64 = (1 << 64) - 1


def mix64(*words: int) -> int:
    """A 63-bit hash of some integers: splitmix64 (Steele, Lea and Flood, 2014) folded over them."""
    state = 0
    for word in words:
        state = (state + (word & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state >> 1


def has_values(x: torch.Tensor) -> bool:
    """Whether a tensor is more than a shape, as meta and fake ones are."""
    return not x.is_meta and not isinstance(x, FakeTensor)


def dropout_mask(shape: tuple[int, ...], p: float, key: int, site: int, device: torch.device) -> torch.Tensor:
    """Kept elements (bool, ``shape``) of one sample: a function of its key, the call site and the element alone."""
    return sample("bernoulli", (1.0 - p,), shape, mix64(key, site), torch.bool, device)


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int, label_smoothing: float
) -> torch.Tensor:
    """Cross entropy (t,) of each row of (t, v) logits against its target (t,); 0 where that is ``ignore_index``."""
    return F.cross_entropy(
        logits, target, reduction="none", ignore_index=ignore_index, label_smoothing=label_smoothing
    )


def dropout(
    x: torch.Tensor, p: float, sample_keys: torch.Tensor, site: int, axis: str = "", dim: int = 0,
    segments: tuple[int, ...] = (),
) -> torch.Tensor:
    """Unsharded dropout of x (b, ...), b = len(sample_keys), scaled by 1 / (1 - p)."""
    if not has_values(x):
        return x * torch.empty_like(x)
    shape = tuple(x.shape[1:])
    masks = [dropout_mask(shape, p, int(key), site, x.device) for key in sample_keys.tolist()]
    return x * torch.stack(masks).to(x.dtype).div_(1 - p)  # fmt: skip


def draw(
    keys: torch.Tensor, distribution: str, parameters: Sequence[float], site: int, shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """For each of ``keys`` (b or none) a draw of ``shape``: a function of the key, the call site and the element."""
    whole = (*keys.shape, *shape)
    if not has_values(keys):
        return torch.empty(whole, dtype=dtype, device=keys.device)
    seeds = [mix64(int(key), site) for key in keys.flatten().tolist()]
    drawn = [sample(distribution, parameters, shape, seed, dtype, keys.device) for seed in seeds]
    return torch.stack(drawn).view(whole)


def part(x: torch.Tensor, dim: int, sizes: list[int], index: int) -> torch.Tensor:
    """``x.split(sizes, dim)[index]``, a view that knows its siblings' sizes, so that each part can be sharded."""
    return x.narrow(dim, sum(sizes[:index]), sizes[index])


def site_keys(sample_keys: torch.Tensor, unit: int) -> torch.Tensor:
    """The samples' (or the step's) keys for the draws of one unit, so that identical blocks draw different ones."""
    if not has_values(sample_keys):
        return torch.empty_like(sample_keys)
    keys = [mix64(key, unit) for key in sample_keys.flatten().tolist()]
    return sample_keys.new_tensor(keys).view(sample_keys.shape)


def top_indices(x: torch.Tensor, k: int, dim: int) -> torch.Tensor:
    """Where the k largest elements of ``x`` along ``dim`` are, largest first."""
    return x.detach().topk(k, dim).indices


def expert_linear(x: torch.Tensor, weight: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """Each row of x (t, k) times the matrix of its expert: weight (g, k, n), expert (t,) -> (t, n)."""
    if not has_values(x):
        return torch.bmm(x.unsqueeze(1), weight[expert]).squeeze(1)
    order = expert.argsort(stable=True)
    counts = expert.bincount(minlength=weight.shape[0]).tolist()
    products = [rows @ matrix for rows, matrix in zip(x[order].split(counts), weight, strict=True)]
    return torch.cat(products)[order.argsort()]


_LIBRARY.impl("cross_entropy", cross_entropy, "CompositeImplicitAutograd")
_LIBRARY.impl("dropout", dropout, "CompositeImplicitAutograd")
_LIBRARY.impl("draw", draw, "CompositeImplicitAutograd")
_LIBRARY.impl("site_keys", site_keys, "CompositeImplicitAutograd")
_LIBRARY.impl("top_indices", top_indices, "CompositeImplicitAutograd")
_LIBRARY.impl("expert_linear", expert_linear, "CompositeImplicitAutograd")
_LIBRARY.impl("part", part, "CompositeImplicitAutograd")

own = torch.ops.partitioner
