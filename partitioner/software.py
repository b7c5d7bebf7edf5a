"""The Software noun: what a training program does with the hardware."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Software:
    """What the training program does with the hardware; the defaults are this project's runtime.

    ``fused``: chains of pointwise ops run as one kernel. ``overlap_gradients``, ``overlap_parameters`` (of sharded
    optimizers), ``overlap_sends`` (between stages), ``overlap_tensor`` (collectives cut into pieces beside the products
    that make or need them): what hides behind compute. ``early_stop``: a recompute ends where the last op that keeps
    something begins, as torch's checkpoint without reentrance does. ``kept_products``: the share of products whose
    results are kept where operators are recomputed. ``scatter_sends``: of a boundary that all tp ranks hold whole, each
    sends a part, and the receivers gather it (Narayanan et al., 2021). ``efficiency``: the share of speed that is left
    of everything. ``attention``: the generation of fused attention's kernels; that which a device does not name is its
    fastest. ``dispatch_seconds``: of the host, for one kernel; ``enqueue_seconds``: more of the host, for one
    collective, a rank of its group, in programs whose stages send between nodes.
    """

    fused: bool = False
    overlap_gradients: bool = True
    overlap_parameters: bool = True
    overlap_sends: bool = True
    overlap_tensor: bool = False
    early_stop: bool = True
    kept_products: float = 1.0
    scatter_sends: bool = False
    efficiency: float = 1.0
    attention: str = "flash-2"
    dispatch_seconds: float = 0.0
    enqueue_seconds: float = 0.0
