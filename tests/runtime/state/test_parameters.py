"""Initial values by parts, from each source, equal under every plan; full tensors gathered back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plans
import pytest
import torch
from plans import PLANS, SHAPES
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from partitioner.errors import InputError
from partitioner.lowering.program import Parameter, Program
from partitioner.ops.cut_tensors import take
from partitioner.sharding.layout import WHOLE, Segment, Shard, shard_whole
from runtime.state import safetensors_files
from runtime.state.deferred_init import name_seed
from runtime.state.module_start import from_seed
from runtime.state.parameters import gather, materialize
from runtime.state.shard_pieces import cut, part


def _ranks(name: str) -> list[tuple[Program, int]]:
    program = plans.plan(name)
    return [(program, rank) for rank in range(plans.world(program))]


EVERYWHERE = [row for name in PLANS for row in _ranks(name)]


class Model(nn.Module):
    """Parameters named and shaped as the Programs' of ``plans``."""

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in values.items():
            owner, _, word = name.rpartition(".")
            module = self
            if owner:
                module = nn.Module()
                self.add_module(owner, module)
            module.register_parameter(word, nn.Parameter(value.clone()))


def test_pieces_are_written_out_for_fused_q_k_v() -> None:
    found = part((8,), (Shard(0, (Segment(1, 4, 1), Segment(1, 2, 1), Segment(1, 2, 1))),), [(1, 2)])
    assert found.shape == (4,)
    assert [(p.offset, p.size, p.local_offset) for p in found.pieces] == [
        ((2,), (2,), (0,)),
        ((5,), (1,), (2,)),
        ((7,), (1,), (3,)),
    ]


def test_pieces_join_where_they_touch_and_vanish_when_empty() -> None:
    whole = part((4, 3), (WHOLE,), [(1, 2)])
    assert [(p.offset, p.size) for p in whole.pieces] == [((0, 0), (4, 3))]
    touching = part((4,), (Shard(0, (Segment(1, 2, 1), Segment(1, 2, 1))),), [(0, 1)])
    assert [p.size for p in touching.pieces] == [(4,)]
    assert part((2, 3), (shard_whole(0, 2, 4),), [(3, 4)]) == part((2, 3), (shard_whole(0, 2, 4),), [(2, 4)])
    assert part((2, 3), (shard_whole(0, 2, 4),), [(3, 4)]).shape == (0, 3)
    assert part((), (WHOLE,), [(0, 2)]).pieces[0].offset == ()


def test_a_repeat_is_a_piece_each_and_axes_compose() -> None:
    shard = Shard(0, (Segment(3, 5, 2),))
    again = Shard(0, (Segment(3, 2, 2),))
    whole = torch.arange(30.0)
    for rank in range(2):
        expected = take(take(whole, shard, 1, 2), again, rank, 2)
        found = part((30,), (shard, again), [(1, 2), (rank, 2)])
        assert torch.equal(cut(whole, found), expected)


@pytest.mark.parametrize(("program", "rank"), EVERYWHERE)
def test_a_real_module_is_cut_as_take_cuts(program: Program, rank: int) -> None:
    values = plans.values()
    module = Model(values)
    here = plans.coordinates(program, rank)
    found = materialize(program, here, module, "cpu")
    for weight in module.parameters():
        weight.data.zero_()
    held = {p.name for p in program.parameters.values() if here["pp"] in {s % program.mesh["pp"] for s in p.stages}}
    assert set(found) == held
    for name, local in found.items():
        assert torch.equal(local, plans.shard(program, name, values[name], rank)), name
        assert local.requires_grad == (name != "frozen")
        assert local.is_contiguous()


def test_dtype_is_the_programs_unless_it_is_given() -> None:
    program, module = plans.plan("one"), Model(plans.values()).double()
    here = plans.coordinates(program, 0)
    assert materialize(program, here, module, "cpu")["scale"].dtype == torch.float32
    assert materialize(program, here, module, "cpu", torch.bfloat16)["scale"].dtype == torch.bfloat16


def test_a_module_that_is_not_the_programs_is_refused() -> None:
    program, values = plans.plan("one"), plans.values()
    here = plans.coordinates(program, 0)
    module = Model(values)
    module.frozen = nn.Parameter(module.frozen.to("meta"), False)
    with pytest.raises(InputError, match="frozen is on meta"):
        materialize(program, here, module, "cpu")
    with pytest.raises(InputError, match=r"qkv\.weight"):
        materialize(program, here, Model({n: v for n, v in values.items() if n != "qkv.weight"}), "cpu")
    with pytest.raises(InputError, match=r"small is \(2, 5\)"):
        materialize(program, here, Model(values | {"small": torch.ones(2, 5)}), "cpu")


class Recorder:
    """``safe_open`` that notes how many elements each read brought in."""

    def __init__(self) -> None:
        self.elements = 0

    def __call__(self, path: Path, framework: str) -> Any:
        self._file = safe_open(path, framework)
        return self

    def __enter__(self) -> Recorder:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, word: str) -> Any:
        return getattr(self._file, word)

    def get_tensor(self, name: str) -> torch.Tensor:
        found = self._file.get_tensor(name)
        self.elements += found.numel()
        return found

    def get_slice(self, name: str) -> Any:
        recorder, stored = self, self._file.get_slice(name)

        class Slice:
            def get_shape(self) -> list[int]:
                return stored.get_shape()

            def __getitem__(self, index: Any) -> torch.Tensor:
                found = stored[index]
                recorder.elements += found.numel()
                return found

        return Slice()


@pytest.mark.parametrize(("program", "rank"), EVERYWHERE)
def test_safetensors_are_read_by_slices(
    program: Program, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = plans.values()
    save_file(values, tmp_path / "model.safetensors")
    recorder = Recorder()
    monkeypatch.setattr(safetensors_files, "safe_open", recorder)
    found = materialize(program, plans.coordinates(program, rank), tmp_path, "cpu")
    for name, local in found.items():
        assert torch.equal(local, plans.shard(program, name, values[name], rank)), name
    assert recorder.elements == sum(local.numel() for local in found.values())


def _prefixed(values: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in values.items()}


@pytest.mark.parametrize("stored", ["embed.weight", "head.weight"])
def test_any_tied_name_and_any_file_of_an_index(stored: str, tmp_path: Path) -> None:
    values = plans.values()
    named = {stored if name == "embed.weight" else name: value for name, value in values.items()}
    rows = {"a.safetensors": dict(list(named.items())[:3]), "b.safetensors": dict(list(named.items())[3:])}
    for file, row in rows.items():
        save_file(row, tmp_path / file)
    index = {"weight_map": {name: file for file, row in rows.items() for name in row}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    program = plans.plan("tp4")
    found = materialize(program, plans.coordinates(program, 1), tmp_path, "cpu")
    for name, local in found.items():
        assert torch.equal(local, plans.shard(program, name, values[name], 1)), name


def _gpt2_like(prefix: str) -> Program:
    full = torch.float32
    rows = {
        names[0]: Parameter(names, shape, full, True, (WHOLE,), (0,), full)
        for names, shape in (
            ((f"{prefix}wte.weight", "lm_head.weight"), (4, 2)), ((f"{prefix}h.0.weight",), (2, 2)),
            (("score.weight",), (1, 2)),
        )
    }
    return plans.of(rows, {"pp": 1, "dp": 1, "tp": 1}, (("tp", 1),))


@pytest.mark.parametrize(("model", "file"), [("transformer.", ""), ("", "transformer.")])
def test_a_base_models_prefix_is_found(model: str, file: str, tmp_path: Path) -> None:
    stored = {f"{file}wte.weight": torch.rand(4, 2), f"{file}h.0.weight": torch.rand(2, 2)}
    save_file(stored | {"score.weight": torch.rand(1, 2)}, tmp_path / "model.safetensors")
    found = materialize(_gpt2_like(model), {"pp": 0, "tp": 0}, tmp_path, "cpu")
    assert torch.equal(found[f"{model}wte.weight"], stored[f"{file}wte.weight"])
    assert torch.equal(found[f"{model}h.0.weight"], stored[f"{file}h.0.weight"])


def test_two_prefixes_are_not_guessed(tmp_path: Path) -> None:
    rows = {"a.wte.weight": torch.rand(4, 2), "b.h.0.weight": torch.rand(2, 2), "score.weight": torch.rand(1, 2)}
    save_file(rows, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"h\.0\.weight; its nearest name is b\.h\.0\.weight"):
        materialize(_gpt2_like(""), {"pp": 0, "tp": 0}, tmp_path, "cpu")


def test_bad_weight_folders_are_named(tmp_path: Path) -> None:
    program, values, file = plans.plan("one"), plans.values(), tmp_path / "model.safetensors"
    here = plans.coordinates(program, 0)
    with pytest.raises(InputError, match="holds neither"):
        materialize(program, here, tmp_path, "cpu")
    save_file({n.replace("qkv", "qvk"): v for n, v in values.items()}, file)
    with pytest.raises(InputError, match=r"no qkv\.weight; its nearest name is qvk\.weight"):
        materialize(program, here, tmp_path, "cpu")
    save_file(values | {"small": torch.ones(2, 5)}, file)
    with pytest.raises(InputError, match=r"small is \(2, 5\), the model needs \(2, 6\)"):
        materialize(program, here, str(tmp_path), "cpu")
    save_file(values, file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match="cannot be read"):
        materialize(program, here, tmp_path, "cpu")


@pytest.mark.parametrize(("program", "rank"), EVERYWHERE)
def test_a_seed_gives_every_rank_its_part_of_the_same_tensor(program: Program, rank: int) -> None:
    found = materialize(
        program, plans.coordinates(program, rank), from_seed(5, lambda name, shape: torch.randn(shape)), "cpu"
    )
    for name, local in found.items():
        torch.manual_seed(name_seed(5, name))
        assert torch.equal(local, plans.shard(program, name, torch.randn(SHAPES[name]), rank)), name


def _gather_work(rank: int) -> None:
    values = plans.values()
    for plan in PLANS:
        program = plans.plan(plan)
        groups = plans.Ranks(program)
        local = materialize(program, groups.coordinates, Model(values), "cpu")
        for name, whole in values.items():
            found = gather(program, groups, name, local.get(name))
            assert torch.equal(found, whole), (plan, name)
            first = gather(program, groups, name, local.get(name), everywhere=False)
            assert (first is None) == (rank != 0), (plan, name)
            assert first is None or torch.equal(first, whole), (plan, name)


@pytest.mark.timeout(180)
def test_full_tensors_are_gathered_from_every_plan() -> None:
    plans.spawn(_gather_work, 4)
