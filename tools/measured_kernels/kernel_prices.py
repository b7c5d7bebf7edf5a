"""What the price says of measured kernels, many rows at once: the formulas of partitioner/kernel_seconds."""

from __future__ import annotations

import math

import numpy as np

from partitioner.cluster import Cluster
from partitioner.errors import InputError
from partitioner.hardware.device import Attention, Device, Products
from partitioner.hardware.link import Protocols, Route, TokenExchange
from partitioner.kernel_seconds import attention, collective, expert_dispatch, product
from partitioner.precision import RECIPES
from tools.measured_kernels.kernel_tables import Measured, kind_of, node_devices

# of an element that is sent: fp8 there, bfloat16 back, as DeepEP is timed; of two bytes it would beat the link
_SENT_BYTES = {"dispatch": 1.0, "combine": 2.0}


def product_seconds(group: Measured, device: Device, row: Products | None = None) -> np.ndarray:
    """Seconds of each product; ``row``: in place of the device's own. Bursts run at full clocks: nothing is taken off
    for what can be sustained. Raises InputError where the device has no such products."""
    recipe = RECIPES.get(group.of)
    dtype, itemsize = (recipe.dtype, recipe.bytes) if recipe else (group.of, 2.0)
    row = row or next((r for r in device.products if group.of in r.types), None)
    if row is None:
        raise InputError(f"{device.name} has no products of {group.of}")
    (m, n, k), bandwidth = group.sizes.T, device.memory_bytes_per_second
    plain = product.seconds(
        m, n, k, np.ones_like(m), row, device.peak(dtype), device.multiprocessors, bandwidth, device.tiles, itemsize
    )
    return plain + product.quantize_seconds(m, k, row, bandwidth)


def seen(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores that causal queries see, a head and sequence, and the most keys that one does; of a window its blocks."""
    length, window = sizes[:, 1], sizes[:, 5]
    near = np.where(window > 0, np.minimum(window + attention.BLOCK, length), length)
    return near * length - near * (near - 1) / 2, near


def attention_seconds(group: Measured, device: Device, row: Attention | None = None) -> np.ndarray:
    """Seconds of each causal attention, forward, with the same provisos."""
    batch, length, heads, key_heads, width, _ = group.sizes.T
    scores, keys = seen(group.sizes)
    return attention.seconds(
        batch * heads * length, batch * heads * scores, keys, 2 * width, batch * length * key_heads,
        row or device.attention, device.peak(group.of), device.multiprocessors, device.memory_bytes_per_second,
    )  # fmt: skip


def over_peak(group: Measured, device: Device) -> np.ndarray:
    """Which rows of attention ask for more FLOPs a second than the device's peak."""
    batch, _, heads, _, width, _ = group.sizes.T
    flops = 4 * width * batch * heads * seen(group.sizes)[0]
    return flops / group.seconds > device.peak(group.of)


def collective_seconds(group: Measured, ring: Protocols, direct: Protocols) -> np.ndarray:
    """Seconds of each collective inside a node."""
    kind = kind_of(group).name
    rows = ((Route(int(ranks), 1, math.inf, math.inf, 0.0, 0.0, ring, direct), size) for ranks, size in group.sizes)
    return np.array([collective.collective_seconds(kind, size, route) for route, size in rows])


def exchange_seconds(group: Measured, cluster: Cluster, row: TokenExchange | None = None) -> np.ndarray:
    """Seconds of each dispatch or combine; ``row``: in place of what was measured of the cluster's link. Raises
    InputError where nothing was."""
    nodes, hidden, tokens, choices, experts = group.sizes.T
    row = row or {"dispatch": cluster.node.dispatch, "combine": cluster.node.combine}[group.of]
    if row is None:
        raise InputError(f"{cluster.name} has no {group.of} of experts' tokens measured inside a node")
    ranks = nodes * node_devices(group.system, cluster.node_devices)
    token_bytes = hidden * _SENT_BYTES[group.of]
    return expert_dispatch.seconds(tokens, token_bytes, experts, choices, ranks, nodes, row, cluster.network.speed)


def log_errors(predicted: np.ndarray, group: Measured) -> np.ndarray:
    """Logarithms of predicted over measured, kept finite for a fit's sake."""
    return np.log(np.clip(predicted / group.seconds, math.exp(-50), math.exp(50)))
