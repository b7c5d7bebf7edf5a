"""Runs of a small model that much happens to, and that go on: ``python -m tools.faults.campaign --help``.

Every run ends where one that nothing happened to ends, bit for bit; every cause is named; nothing waits beyond its
limit. A table counts, each miss is a line, and the exit status is 1 where there is one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tools.faults import disturbances
from tools.faults.trials import MODEL, PLACE, RANKS, SMALL, STEPS, Campaign
from tools.main import main as partitioner
from tools.screen import output, table

KINDS: dict[str, tuple[Callable[[Campaign], None], int, str]] = {
    "kills": (disturbances.kill, 40, "SIGKILL of a rank"),
    "stops": (disturbances.stop, 10, "SIGSTOP of a rank"),
    "leaves": (disturbances.leave, 5, "SIGTERM of the command"),
    "damages": (disturbances.damage, 20, "torn or flipped checkpoints"),
    "disks": (disturbances.fill, 1, "disks that are full"),
    "reshapes": (disturbances.reshape, 1, "five other numbers of ranks"),
    "cuts": (disturbances.cut, 1, "links between two hosts, cut and healed"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run them all and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.faults.campaign", description=__doc__)
    for name, (_, many, words) in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=many, metavar="N", help=f"{words}; default: {many}")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        campaign = Campaign(Path(place), random.Random(options.seed), Path(place) / "plan.json")
        if partitioner(["plan", MODEL, *SMALL, *PLACE, "-o", str(campaign.plan)]):
            return 1
        campaign.begin()
        if options.damages:
            disturbances.half(campaign)
        for name, (act, _, _) in KINDS.items():
            for _ in range(getattr(options, name)):
                act(campaign)
    missed = Counter(kind for kind in campaign.tried for text in campaign.misses if text.startswith(kind))
    rows = [
        [kind, str(many), str(missed[kind]), f"{campaign.longest[kind]:.1f} s" if kind in campaign.longest else ""]
        for kind, many in campaign.tried.items()
    ]
    title = f"runs of {STEPS} steps on {RANKS} ranks, {campaign.seconds:.0f} s undisturbed"
    output().print(table(title, ("", "tried", "missed", "longest to its end"), rows))
    for text in campaign.misses:
        output().print(text, markup=False, highlight=False)
    return 1 if campaign.misses else 0


if __name__ == "__main__":
    sys.exit(main())
