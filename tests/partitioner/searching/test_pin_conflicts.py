"""Pins that exclude each other are named, the fewest of them, and nothing that the message says is untrue."""

from __future__ import annotations

import itertools
import re

import pytest

from examples.gpt import model
from partitioner import Cluster, Graph, search, trace
from partitioner.errors import InputError

CASES = [  # devices, global batch, pins, what the message says
    (4, 8, {"tp": 3, "pp": 2}, "pin tp=3 does not divide 4 devices: pin a divisor of it"),
    (4, 8, {"tp": 2, "pp": 1, "dp": 1}, "pins tp=2, pp=1 and dp=1 make 2 ranks, and there are 4 devices: drop one"),
    (2, 8, {"tp": 1, "pp": 1, "dp": 1}, "pins tp=1, pp=1 and dp=1 make 1 ranks, and there are 2 devices: drop one"),
    (4, 8, {"tp": 2, "pp": 2, "dp": 2}, "pins tp=2, pp=2 and dp=2 make 8 ranks, which do not divide 4 devices"),
    (2, 8, {"tp": 2, "pp": 2}, "pins tp=2 and pp=2 make 4 ranks, which do not divide 2 devices: drop one"),
    (4, 7, {"dp": 2}, "pin dp=2 does not divide the global batch of 7: pin a divisor of it"),
    (4, 7, {"tp": 2, "pp": 1}, "global batch of 7 and 4 blocks has tp=2 and pp=1: drop one, or change the batch"),
    (4, 4, {"tp": 1, "virtual": 4}, "global batch of 4 and 4 blocks has virtual=4: drop it"),
    (3, 7, {"stages": "2,1,1,2"}, "global batch of 7 and 4 blocks has stages=2,1,1,2: drop it"),
    (2, 2, {"virtual": 1, "stages": "2,1,1,2"}, "has virtual=1 and stages=2,1,1,2: drop one"),
    (4, 2, {"micro_batch": 2, "virtual": 2}, "has micro_batch=2 and virtual=2: drop one"),
    (4, 8, {"recompute": "off", "recomputed": 1}, "pins recompute=none and recomputed=1 conflict: drop one"),
    (4, 8, {"pp": 2, "recomputed": 5}, "asks for more blocks of a stage than the model's 4: pin at most 4"),
    (4, 8, {"tp": "²"}, "pin tp=²: give a positive number"),
]  # fmt: skip


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(*model(vocab=64, hidden=16, heads=4, seq=8, layers=4))


@pytest.mark.parametrize(("devices", "batch", "pins", "words"), CASES)
def test_what_conflicts_is_named(
    graph: Graph, devices: int, batch: int, pins: dict[str, str | int], words: str
) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        search(graph, Cluster.load("local-cpu", devices=devices), batch, pins)
    assert "\n" not in str(caught.value)


def test_no_message_proposes_what_is_there(graph: Graph) -> None:
    """All degrees that do not make the devices: the message names only pins that were given."""
    cluster = Cluster.load("local-cpu", devices=4)
    for tp, pp, dp in itertools.product((1, 2, 4), repeat=3):
        if tp * pp * dp != 4:
            with pytest.raises(InputError, match="devices") as caught:
                search(graph, cluster, 8, {"tp": tp, "pp": pp, "dp": dp})
            named = dict(re.findall(r"(tp|pp|dp)=(\d)", str(caught.value)))
            assert named.items() <= {"tp": str(tp), "pp": str(pp), "dp": str(dp)}.items()
            assert "nearest" not in str(caught.value)
