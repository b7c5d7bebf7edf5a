"""The Link noun: what one device can send, what collectives reach of it, and the Route of a group over links."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Protocols:
    """Collectives as they were measured among devices of one link: each takes the fastest of several protocols.

    Of protocol p, ``latency_seconds[p]`` and ``hop_seconds[p]`` for each step from member to member beside the bytes
    at ``bytes_per_second[p]``. ``group_shares``: of that speed, what groups of so many members reach; ``kind_shares``:
    what a kind of collective does. Between the sizes of groups it goes by their logarithm; beyond them it stays.
    """

    latency_seconds: tuple[float, ...]
    hop_seconds: tuple[float, ...]
    bytes_per_second: tuple[float, ...]
    group_shares: Mapping[str, float] = field(default_factory=dict)
    kind_shares: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, kind: str, ranks: int, hops: int, moved: float) -> float:
        """Of ``moved`` bytes a member in ``hops`` steps."""
        share = self.share_of(ranks) * self.kind_shares.get(kind, 1.0)
        rows = zip(self.latency_seconds, self.hop_seconds, self.bytes_per_second, strict=True)
        return min(latency + hop * hops + moved / (speed * share) for latency, hop, speed in rows)

    def scaled(self, speed: float, latency: float = 1.0) -> Protocols:
        """With so many times its speeds and its latencies."""
        first, hop = (tuple(s * latency for s in row) for row in (self.latency_seconds, self.hop_seconds))
        rates = tuple(rate * speed for rate in self.bytes_per_second)
        return replace(self, latency_seconds=first, hop_seconds=hop, bytes_per_second=rates)

    def share_of(self, ranks: int) -> float:
        """Of its speed, what a group of so many reaches."""
        sizes = sorted((int(size), share) for size, share in self.group_shares.items())
        if not sizes or ranks >= sizes[-1][0]:
            return sizes[-1][1] if sizes else 1.0
        if ranks <= sizes[0][0]:
            return sizes[0][1]
        (low, first), (high, second) = next(
            (a, b) for a, b in zip(sizes, sizes[1:], strict=False) if a[0] <= ranks <= b[0]
        )
        return first + (second - first) * math.log(ranks / low) / math.log(high / low)


@dataclass(frozen=True)
class TokenExchange:
    """Tokens sent to the ranks that hold their experts, or back, as it was measured among devices of one link.

    ``fixed_seconds`` of a call, ``token_seconds`` of each token, ``bytes_per_second`` of each copy of it that is sent,
    ``own_bytes_per_second`` of what is read or written once.
    """

    fixed_seconds: float
    token_seconds: float
    bytes_per_second: float
    own_bytes_per_second: float

    def scaled(self, speed: float, latency: float = 1.0) -> TokenExchange:
        """With so many times its speeds and its latencies."""
        sent, own = self.bytes_per_second * speed, self.own_bytes_per_second * speed
        return TokenExchange(self.fixed_seconds * latency, self.token_seconds / speed, sent, own)


@dataclass(frozen=True)
class Link:
    """What one device can send, one direction, by the datasheet, and the share that collectives reach of it.

    ``latency_seconds``: of one message. ``contention``: the share of its time by which compute beside it is slowed.
    ``ring`` and ``direct``: collectives among devices of this link as they were measured, where they were: those in
    which data goes from member to member, and those in which each member sends to each; ``dispatch`` and ``combine``:
    the same of a mixture's tokens.
    """

    bytes_per_second: float
    efficiency: float
    latency_seconds: float
    contention: float = 0.0
    ring: Protocols | None = None
    direct: Protocols | None = None
    dispatch: TokenExchange | None = None
    combine: TokenExchange | None = None

    @property
    def speed(self) -> float:
        """Bytes a second that a collective moves."""
        return self.bytes_per_second * self.efficiency

    def scaled(self, speed: float, latency: float = 1.0) -> Link:
        """With so many times its speed and its latency, of all that was measured of it too."""
        measured = {name: found.scaled(speed, latency) for name in _MEASURED if (found := getattr(self, name))}
        return replace(
            self, bytes_per_second=self.bytes_per_second * speed, latency_seconds=self.latency_seconds * latency,
            **measured,
        )  # fmt: skip


_MEASURED = ("ring", "direct", "dispatch", "combine")  # of a Link, where they were


@dataclass(frozen=True)
class Route:
    """How a group of ranks is linked: ``nodes`` of it with ``ranks / nodes`` members each.

    ``bytes_per_second`` is what a ring moves a member; ``far`` is what leaves a node, a member; ``hop_seconds`` and
    ``far_hop_seconds`` are one message's within a node and between nodes. ``ring``, ``direct``: as they were measured,
    of a group in one node.
    """

    ranks: int
    nodes: int
    bytes_per_second: float
    far_bytes_per_second: float
    hop_seconds: float
    far_hop_seconds: float
    ring: Protocols | None = None
    direct: Protocols | None = None
