"""The least number of devices on which a model fits: doubled until it does, then halved between.

    1  2  4  8 (a node)  16  32 fits        24 misses   ->   32 of whole nodes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tools.fit.trials import Trial

MOST_NODES = 1024
STILL = 0.01  # of its bytes: by doublings of less than that the tightest plan does not come to fit
STILLS = 2  # such doublings one after the other, after which no more are tried


def least(trial: Callable[[int], Trial], node: int, above: int = 0, up_to: int = 0) -> list[Trial]:
    """All that was tried of more than ``above`` devices, fewest first; the first that fits is the least number.

    Inside a node of ``node`` devices powers of two are tried, then the node, and doubled numbers of nodes. Between the
    last of them that does not fit and the first that does, numbers of nodes are halved: taken is that a model which
    fits on some of these fits on more of them, and that where it does not fit on one, it fits on no fewer. The number
    next below the answer has always been tried. After that the doubled numbers ``up_to`` so many devices.
    """
    found = dict[int, Trial]()
    for devices in (n for n in counts(node) if n > above):
        found[devices] = trial(devices)
        if found[devices].fits or _stands_still([*found.values()]):
            break
    first = next((n for n, row in found.items() if row.fits), None)
    if first is not None:
        low, high = max((above, *(n for n in found if n < first))) // node, first // node
        while high - low > 1 and low >= 1:
            middle = (low + high) // 2
            found[middle * node] = trial(middle * node)
            low, high = (low, middle) if found[middle * node].fits else (middle, high)
        found |= {n: trial(n) for n in counts(node) if first < n <= up_to}
    return [found[n] for n in sorted(found)]


def counts(node: int) -> Iterator[int]:
    """Numbers of devices, each next to twice the one before."""
    inside = 1
    while inside < node:
        yield inside
        inside *= 2
    nodes = 1
    while nodes <= MOST_NODES:
        yield nodes * node
        nodes *= 2


def _stands_still(tried: list[Trial]) -> bool:
    """Whether the last doublings made the tightest plan no smaller."""
    peaks = [row.tightest.cost.peak_bytes for row in tried if row.tightest][-STILLS - 1 :]
    return len(peaks) > STILLS and all(b > a * (1 - STILL) for a, b in zip(peaks, peaks[1:], strict=False))
