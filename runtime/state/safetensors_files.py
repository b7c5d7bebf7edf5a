"""Hugging Face safetensors folders: read by slices, under either of two prefixes, and written one parameter at a time.

    file wte.weight                 model transformer.wte.weight        (saved from the base model)
    file transformer.wte.weight     model wte.weight                    (saved from a model with a head)
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from partitioner.errors import InputError
from partitioner.lowering.program import Parameter, Program
from runtime.state.shard_pieces import Part

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILE_BYTES = 5_000_000_000


def from_safetensors(program: Program, folder: Path) -> Callable[[Parameter, Part], torch.Tensor]:
    """A source that reads only a rank's own pieces from ``model.safetensors`` or the files of its index.

    Any of a parameter's names may be stored. Names that differ by the base model's prefix are matched when one prefix
    explains every difference. Raises InputError naming a weight that is missing or misshapen, or a broken file.
    """
    files = _files(folder)
    stored = _matched(program, files, folder)

    def read(parameter: Parameter, part: Part) -> torch.Tensor:
        name = stored[parameter.name]
        try:
            return _read(files[name], name, parameter, part)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{files[name]}: {name} cannot be read ({error}); fetch the file again") from error

    return read


def _read(path: Path, name: str, parameter: Parameter, part: Part) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        stored = file.get_slice(name)
        shape = tuple(stored.get_shape())
        if shape != parameter.shape:
            raise InputError(f"{path}: {name} is {shape}, the model needs {parameter.shape}")
        if not shape:
            return file.get_tensor(name)
        read = [stored[piece.whole] for piece in part.pieces]
        if len(read) == 1:
            return read[0]
        local = torch.empty(part.shape, dtype=read[0].dtype if read else parameter.dtype)
        for piece, values in zip(part.pieces, read, strict=True):
            local[piece.local] = values
        return local


def _files(folder: Path) -> dict[str, Path]:
    """The file that holds each stored name."""
    try:
        if not (folder / SINGLE).is_file():
            return {name: folder / file for name, file in _index(folder).items()}
        with safe_open(folder / SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / SINGLE)
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds neither {SINGLE} nor {INDEX}") from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: the weights cannot be read ({error}); fetch them again") from error


def _index(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def _matched(program: Program, files: dict[str, Path], folder: Path) -> dict[str, str]:
    """The stored name of every parameter."""
    parameters = program.parameters.values()
    found = {p.name: name for p in parameters for name in reversed(p.names) if name in files}
    missing = [p for p in parameters if p.name not in found]
    if not missing:
        return found
    renamings = [_renamed(missing, files, prefix) for prefix in _prefixes(missing[0], files)]
    best = max(renamings, key=len, default={})
    lost = next((p.name for p in missing if p.name not in best), None)
    if lost is not None:
        near = difflib.get_close_matches(lost, files, 1, 0.0)
        raise InputError(f"{folder} has no {lost}" + (f"; its nearest name is {near[0]}" if near else ""))
    return found | best


def _prefixes(parameter: Parameter, files: Iterable[str]) -> list[tuple[str, str]]:
    """Every (prefix to cut, prefix to add) that turns a name of ``parameter`` into a stored name, in a stable order."""
    rows: set[tuple[str, str]] = set()
    for name in parameter.names:
        for stored in files:
            if name.endswith("." + stored):
                rows.add((name.removesuffix(stored), ""))
            if stored.endswith("." + name):
                rows.add(("", stored.removesuffix(name)))
    return sorted(rows)


def _renamed(missing: list[Parameter], files: dict[str, Path], prefix: tuple[str, str]) -> dict[str, str]:
    cut, add = prefix
    rows = ((p.name, add + name[len(cut) :]) for p in missing for name in p.names if name.startswith(cut))
    return {name: stored for name, stored in rows if stored in files}


def write_safetensors(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], file_bytes: int = FILE_BYTES) -> None:
    """Write named full tensors, one file at a time in memory, as ``save_pretrained`` lays them out.

    A new file begins where the last would pass ``file_bytes``; with more than one there is an index. The old weights
    of the folder are replaced last, so that an interrupted export leaves them as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, int]] = []
    batch: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        if batch and _bytes(batch.values()) + _bytes([tensor]) > file_bytes:
            rows.append(_write(folder, len(rows), batch))
            batch = {}
        batch[name] = tensor.detach().cpu().contiguous()
    rows.append(_write(folder, len(rows), batch))
    _publish(folder, rows)


def _write(folder: Path, number: int, batch: dict[str, torch.Tensor]) -> dict[str, int]:
    save_file(batch, folder / f"part-{number}.writing", metadata={"format": "pt"})
    return {name: _bytes([tensor]) for name, tensor in batch.items()}


def _publish(folder: Path, rows: list[dict[str, int]]) -> None:
    count = len(rows)
    names = [SINGLE] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    old = {SINGLE} | (set(_index(folder).values()) if (folder / INDEX).is_file() else set())
    for number, name in enumerate(names):
        (folder / f"part-{number}.writing").replace(folder / name)
    for stale in old - set(names):
        (folder / stale).unlink(missing_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    if count > 1:
        table = {name: file for file, row in zip(names, rows, strict=True) for name in row}
        total = sum(size for row in rows for size in row.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": table}, indent=2)
        (folder / INDEX).write_text(text + "\n")


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
