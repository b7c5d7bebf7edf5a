"""Groups are made together, and every communicator is there before a pipeline's sends would make it in their order."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import plans
import pytest
import small
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_engine import ADAMW, CLIP, close, local, samples
from torch._C._distributed_c10d import FileStore

from runtime.dry_run.recording_group import TapeGroup, own_group, world_of
from runtime.mesh import groups, make_groups
from runtime.mesh.groups import Groups
from runtime.mesh.make_groups import NCCL, apart, made_together
from runtime.state.optimizer import factory
from runtime.state.parameters import materialize
from runtime.state.shard_pieces import cut
from runtime.train.engine import Engine


def ring(ranks: int) -> list[tuple[int, int]]:
    return [(rank, (rank + 1) % ranks) for rank in range(ranks)]


@pytest.mark.parametrize(("edges", "colors"), [(ring(4)[:-1], 2), (ring(4), 2), (ring(5), 3), (ring(2), 2), ([], 0)])
def test_no_two_edges_of_a_color_meet(edges: list[tuple[int, int]], colors: int) -> None:
    found = apart(edges)
    assert len(found) == colors
    assert sorted(edge for color in found for edge in color) == sorted(edges)
    for color in found:
        ends = [end for edge in color for end in edge]
        assert len(ends) == len(set(ends))


@pytest.mark.parametrize("rank", [0, 1000, 2303])
def test_thousands_of_ranks_are_a_few_splits(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same groups as made one by one."""
    splits: list[list[list[int]]] = []

    def split_group(split_ranks: list[list[int]], timeout: timedelta) -> dist.ProcessGroup | None:
        splits.append(split_ranks)
        return own_group([tuple(ranks) for ranks in split_ranks])

    program = plans.program(pp=4, dp=288, tp=2)
    with world_of(rank, 2304) as tape:
        tape.log.keep = True
        wanted = ranks_of(Groups(program, backend=NCCL, make=own_group, log=tape.log))
    with world_of(rank, 2304):
        monkeypatch.setattr(dist, "split_group", split_group)
        monkeypatch.setattr(make_groups, "is_split_from_world", lambda: True)
        monkeypatch.setattr(groups, "is_split_from_world", lambda: True)
        assert ranks_of(Groups(program, backend=NCCL)) == wanted
    assert len(splits) == 3 + 1 + 4  # axes, the shared embedding, two colors forth and back
    for cells in splits:
        assert sorted(rank for ranks in cells for rank in ranks) == list(range(2304))


@pytest.mark.parametrize("mesh", [{"pp": 3}, {"pp": 4, "dp": 2}])
def test_members_of_a_part_name_it_alike(mesh: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch names it: after its ranks and how many groups a rank has registered, which it does of its own alone."""
    program = plans.program(**mesh)
    names: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}
    registered = list[str]()

    def split_group(split_ranks: list[list[int]], timeout: timedelta) -> dist.ProcessGroup | None:
        rank, splits = dist.get_rank(), sum(r == dist.get_rank() for r, _ in names)
        own = next((tuple(ranks) for ranks in split_ranks if rank in ranks), ())
        names[rank, splits] = own, len(registered)
        registered.extend(["one"] if own else [])
        return own_group([own]) if len(own) > 1 else None

    monkeypatch.setattr(make_groups, "is_split_from_world", lambda: True)
    monkeypatch.setattr(groups, "is_split_from_world", lambda: True)
    for rank in range(plans.world(program)):
        registered.clear()
        with world_of(rank, plans.world(program)):
            monkeypatch.setattr(dist, "split_group", split_group)
            Groups(program, backend=NCCL)
    for (_, split), (own, before) in names.items():
        assert {names[member, split] for member in own} == {(own, before)}


def ranks_of(found: Groups) -> list[tuple[str, tuple[int, ...]]]:
    return [(axis, group.ranks) for axis, group in found.every() if isinstance(group, TapeGroup)]


GPIPE: dict[str, Any] = {"pp": 2, "kind": "gpipe", "micro_batches": 3}


class Lazy:
    """Makes gloo wait as NCCL does: the first that a rank does in a group waits for the first of all others."""

    def __init__(self, folder: Path) -> None:
        self.store, self.begun, self.vain = FileStore(str(folder / "store"), 2), set[str](), folder / "vain"
        self._batch, self._sum = dist.batch_isend_irecv, dist.all_reduce

    def meet(self, group: dist.ProcessGroup) -> None:
        name = group.group_name
        if name not in self.begun:
            self.begun.add(name)
            self.store.set(f"{name}/{dist.get_rank()}", "here")
            others = [f"{name}/{rank}" for rank in dist.get_process_group_ranks(group)]
            try:
                self.store.wait(others, timedelta(seconds=5))
            except RuntimeError:
                self.vain.touch()
                raise

    def batch(self, ops: list[dist.P2POp]) -> Any:
        assert ops[0].group is not None
        self.meet(ops[0].group)
        return self._batch(ops)

    def sum(self, tensor: torch.Tensor, *args: Any, group: dist.ProcessGroup, **options: Any) -> Any:
        self.meet(group)
        return self._sum(tensor, *args, group=group, **options)


def _lazily(rank: int, folder: str, meets: bool) -> None:
    lazy = Lazy(Path(folder))
    dist.batch_isend_irecv, dist.all_reduce = lazy.batch, lazy.sum
    if not meets:
        Groups._meet = lambda self: None  # type: ignore[method-assign]
    program, full = small.program(**GPIPE), small.weights()
    here = Groups(program, backend=NCCL, make=made_together)
    held = materialize(program, here.coordinates, lambda p, part: cut(full[p.name], part), "cpu")
    engine = Engine(program, here, held, factory(ADAMW), CLIP)
    data = small.batch(samples(program))
    expected = small.reference(full, data, 0, small.DROP)
    close(engine.step(local(program, engine, data)), expected, "loss")


def test_communicators_that_are_made_late_keep_no_pipeline_waiting(tmp_path: Path) -> None:
    plans.spawn(_lazily, 2, str(tmp_path), True)


def test_without_a_first_word_they_would(tmp_path: Path) -> None:
    """So that the test before can fail."""
    with pytest.raises(mp.ProcessRaisedException):
        plans.spawn(_lazily, 2, str(tmp_path), False)
    assert (tmp_path / "vain").exists()
