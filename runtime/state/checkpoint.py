"""The training state on disk, as rectangles of full tensors: saved under one plan, loaded under any other.

    FOLDER/step-00000020/.metadata, *.distcp     torch.distributed.checkpoint: parameters, optimizer state
    FOLDER/step-00000020/complete.json           step, seed, samples, optimizer, its groups, and every file's size

A checkpoint is written aside and renamed when whole: a folder named step-N is never half a checkpoint. Nothing in one
runs when it is loaded (runtime/state/checkpoint_reader.py).
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from partitioner.errors import InputError
from partitioner.lowering.program import Program
from runtime.ranks.process_group import is_first
from runtime.state.checkpoint_reader import CheckpointReader
from runtime.state.dcp_chunks import Entry, LoadPlanner, SavePlanner
from runtime.state.optimizer import Hyper, hyper_parameters, restored
from runtime.state.parameters import Groups, gather
from runtime.state.safetensors_files import FILE_BYTES, write_safetensors
from runtime.state.shard_pieces import part, part_of

COMPLETE, VERSION = "complete.json", 1
Tensors = Mapping[str, torch.Tensor]


class Number(NamedTuple):
    """A plain number of an optimizer's state, as a scalar of its kind."""

    held: torch.Tensor


States = dict[str, dict[str, torch.Tensor | Number]]
T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """How far training has come: steps done, the run's seed, and samples read of the data, all ranks together.

    ``loss_scale``: its numbers, None where the loss is not scaled.
    """

    step: int
    seed: int
    samples: int
    loss_scale: dict[str, Any] | None = None


def save(
    folder: Path | str,
    program: Program,
    groups: Groups,
    parameters: Tensors,
    optimizer: torch.optim.Optimizer | None,
    progress: Progress,
) -> Path:
    """Write FOLDER/step-N from all ranks together and return it; a value held by many ranks is written by one.

    ``parameters`` are this rank's parts; those that ``optimizer`` updates are found in it by identity.
    """
    target = Path(folder) / f"step-{progress.step:08d}"
    writing = target.with_suffix(".writing")
    if is_first():
        shutil.rmtree(writing, ignore_errors=True)
    _barrier()
    entries = _entries(program, groups, parameters, _states(parameters, optimizer))
    planner = SavePlanner(flatten_state_dict=False)
    with _quiet():
        state_dict_saver.save(entries, storage_writer=FileSystemWriter(writing), planner=planner)
    if is_first():
        _publish(writing, target, progress, optimizer)
    _barrier()
    return target


def load(
    folder: Path | str,
    program: Program,
    groups: Groups,
    parameters: Tensors,
    optimizer: torch.optim.Optimizer | None,
) -> Progress:
    """Fill ``parameters`` and the optimizer's state in place from FOLDER, or from its newest step-N, on all ranks.

    The plan may differ from the one saved under, its precision too; the model and the kind of optimizer may not. Hyper-
    parameters (learning rate, betas, weight decay, ...) become those that were saved, as ``load_state_dict`` of torch's
    own optimizers does; from weights alone the optimizer starts afresh. Raises InputError for a missing, truncated or
    foreign checkpoint, the same on all ranks, before anything is changed.
    """
    found = _agreed(lambda: _find(Path(folder)))
    progress, groups_saved = _agreed(lambda: _complete(found, program, optimizer))
    metadata = _agreed(lambda: _metadata(found, program, parameters))
    states = _empty_states(program, groups, parameters, metadata) if optimizer is not None else {}
    entries = _entries(program, groups, parameters, states)
    planner = LoadPlanner(flatten_state_dict=False)
    with _quiet():
        state_dict_loader.load(entries, storage_reader=CheckpointReader(found), planner=planner)
    if optimizer is not None:
        _give(optimizer, parameters, states, groups_saved)
    return progress


def export_safetensors(
    program: Program,
    groups: Groups,
    parameters: Tensors,
    folder: Path | str,
    buffers: Tensors | None = None,
    dtype: torch.dtype | None = None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write every full parameter under its first name (tied names once), and ``buffers``, as ``save_pretrained`` does.

    Called on all ranks, written by rank 0, one file's parameters at a time in its memory. ``dtype`` None keeps the
    dtypes in which values are held.
    """
    rows = _full(program, groups, parameters, buffers or {}, dtype)
    if is_first():
        write_safetensors(Path(folder), rows, file_bytes)
    else:
        for _ in rows:
            pass
    _barrier()


def _full(
    program: Program, groups: Groups, parameters: Tensors, buffers: Tensors, dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in program.parameters.items():
        kept = dtype or parameter.held_dtype
        local = parameters[name].to(kept) if name in parameters else None
        whole = gather(program, groups, name, local, kept, everywhere=False)
        if whole is not None:
            yield name, whole
    yield from buffers.items()


def _states(parameters: Tensors, optimizer: torch.optim.Optimizer | None) -> States:
    """The optimizer's tensors and numbers by parameter name and by its own word for them."""
    kept = optimizer.state if optimizer is not None else {}
    rows = {name: kept.get(tensor, {}) for name, tensor in parameters.items()}
    return {
        name: {word: _held(word, value, optimizer) for word, value in row.items() if value is not None}
        for name, row in rows.items()
    }


def _held(word: str, value: object, optimizer: object) -> torch.Tensor | Number:
    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, bool | int | float):
        kind, what = type(optimizer).__name__, type(value).__name__
        raise InputError(f"the state of {kind} has a {what}, {word}: a checkpoint holds tensors and numbers")
    return Number(torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None))


def _empty_states(program: Program, groups: Groups, parameters: Tensors, metadata: Metadata) -> States:
    """Memory for the state that the checkpoint holds of this rank's parameters: their parts, and scalars."""
    states: States = {name: {} for name in parameters}
    for key, stored in metadata.state_dict_metadata.items():
        kind, _, rest = key.partition("/")
        name, _, word = rest.rpartition("/")
        if name not in states or not isinstance(stored, TensorStorageMetadata):
            continue
        if kind == "number":
            states[name][word] = Number(torch.empty((), dtype=stored.properties.dtype))
        elif kind == "optimizer":
            tensor = parameters[name]
            like = tensor.shape if tuple(stored.size) == program.parameters[name].shape else stored.size
            states[name][word] = torch.empty(like, dtype=stored.properties.dtype, device=tensor.device)
    return states


def _entries(program: Program, groups: Groups, parameters: Tensors, states: States) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name, tensor in parameters.items():
        own = part_of(program, program.parameters[name], groups.coordinates)
        if tuple(tensor.shape) != own.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} here, its part is {own.shape}")
        entries[f"parameter/{name}"] = Entry(tensor, own)
        for word, value in states.get(name, {}).items():
            if isinstance(value, Number):
                entries[f"number/{name}/{word}"] = Entry(value.held, part((), (), ()))
                continue
            whole = value.shape == tensor.shape
            entries[f"optimizer/{name}/{word}"] = Entry(value, own if whole else part(tuple(value.shape), (), ()))
    return entries


def _give(optimizer: torch.optim.Optimizer, parameters: Tensors, states: States, saved: list[Hyper]) -> None:
    """Let the optimizer place the loaded tensors itself, beside the hyper-parameters of its saved groups."""
    names = {id(tensor): name for name, tensor in parameters.items()}
    members = [p for group in optimizer.param_groups for p in group["params"]]
    found = ((n, states.get(names.get(id(p), ""), {})) for n, p in enumerate(members))
    rows = {
        n: {word: v.held.item() if isinstance(v, Number) else v for word, v in row.items()} for n, row in found if row
    }
    own = optimizer.state_dict()["param_groups"]
    groups = [restored(group, values) for group, values in zip(own, saved or [{}] * len(own), strict=True)]
    optimizer.load_state_dict({"state": rows, "param_groups": groups})


def _publish(writing: Path, target: Path, progress: Progress, optimizer: torch.optim.Optimizer | None) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(writing.iterdir())}
    kind, groups = (type(optimizer).__name__, hyper_parameters(optimizer)) if optimizer is not None else (None, [])
    complete = {"version": VERSION, "progress": asdict(progress), "optimizer": kind, "groups": groups, "files": sizes}
    (writing / COMPLETE).write_text(json.dumps(complete, indent=2) + "\n")
    old = target.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    writing.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _find(folder: Path) -> Path:
    if (folder / COMPLETE).is_file():
        return folder
    steps = sorted(f for f in folder.glob("step-*") if f.name[5:].isdigit())
    if not steps:
        raise InputError(f"{folder} holds no checkpoint: name a folder that holds step-N, or a step-N itself")
    return steps[-1]


def _complete(
    found: Path, program: Program, optimizer: torch.optim.Optimizer | None
) -> tuple[Progress, list[Hyper]]:
    """How far the checkpoint has come, and its optimizer's groups: none where it holds no optimizer's state."""
    complete = _checked_files(found)
    progress, kind = Progress(**complete["progress"]), type(optimizer).__name__
    if optimizer is not None and complete["optimizer"] not in (None, kind):
        raise InputError(f"{found} holds the state of {complete['optimizer']}, not of {kind}")
    if progress.seed != program.seed:
        raise InputError(f"{found} has seed {progress.seed}, the plan has {program.seed}: change the plan's")
    groups = complete.get("groups", [])
    if optimizer is not None and groups and len(groups) != len(optimizer.param_groups):
        raise InputError(f"{found} holds {len(groups)} groups of parameters, not {len(optimizer.param_groups)}")
    return progress, groups


def _checked_files(found: Path) -> dict[str, Any]:
    try:
        complete = json.loads((found / COMPLETE).read_text())
        if complete.get("version", VERSION) > VERSION:
            have = complete["version"]
            raise InputError(f"{found}: version {have} is newer than this program, which reads {VERSION}: update it")
        sizes, _ = complete["files"].items(), Progress(**complete["progress"])
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{found} is not a whole checkpoint ({COMPLETE}: {error!r}): load an earlier one") from error
    for name, size in sizes:
        have = (found / name).stat().st_size if (found / name).is_file() else None
        if have != size:
            state = "is missing" if have is None else f"has {have} of {size} bytes"
            raise InputError(f"{found} is not a whole checkpoint ({name} {state}): load an earlier one")
    return complete


def _metadata(found: Path, program: Program, parameters: Tensors) -> Metadata:
    """What torch wrote about the tensors, found to be of this model."""
    try:
        metadata = CheckpointReader(found).read_metadata()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{found} is not a whole checkpoint (.metadata: {error}): load an earlier one") from error
    stored = {key: row for key, row in metadata.state_dict_metadata.items() if isinstance(row, TensorStorageMetadata)}
    for name, parameter in program.parameters.items():
        have = stored.get(f"parameter/{name}")
        if have is None:
            raise InputError(f"{found} has no parameter {name}: it is a checkpoint of another model")
        if tuple(have.size) != parameter.shape:
            raise InputError(f"{found}: {name} is {tuple(have.size)}, the model needs {parameter.shape}")
        held, needed = have.properties.dtype, parameters[name].dtype if name in parameters else None
        if needed is not None and held != needed and not (held.is_floating_point and needed.is_floating_point):
            raise InputError(f"{found}: {name} is {held}, the model needs {needed}")
    for name in (key.removeprefix("parameter/") for key in stored if key.startswith("parameter/")):
        if name not in program.parameters:
            raise InputError(f"{found} has also a parameter {name}: it is a checkpoint of another model")
    return metadata


def _agreed(read: Callable[[], T]) -> T:
    """What ``read`` returns; its InputError on any rank is raised on all, for the others would wait for that rank."""
    value: list[T] = []
    message: str | None = None
    try:
        value.append(read())
    except InputError as error:
        message = str(error)
    messages = [message]
    if dist.is_initialized():
        messages = [None] * dist.get_world_size()
        dist.all_gather_object(messages, message)
    for text in filter(None, messages):
        raise InputError(text)
    return value[0]


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def _quiet() -> Generator[None]:
    """One process without a process group is a case of its own here, and torch warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
