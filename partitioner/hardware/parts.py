"""Cluster files, and the parts that they share: a device or a link of a file may say ``base``, the name of a part, and
then holds only what is other in it.

    clusters/dgx-h100.toml    [device] base = "h100-sxm-80gb"    --> parts/h100-sxm-80gb.toml

A table [why] tells of each number where it comes from.
"""

from __future__ import annotations

import difflib
import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from partitioner.errors import InputError
from partitioner.hardware.checked_table import cut, is_name, shown

_WITH_BASE = ("device", "node", "network")
_WHY = "why"
_BY_DEFAULT = {  # of numbers that files may leave out
    "device.tiles": "tiles of cuBLAS and CUTLASS kernels",
    "device.sustained": "not fitted: all of it",
    "node.contention": "not measured: none",
    "network.contention": "not measured: none",
}
_DEEPEST = 4  # of a part that is based on another
Tables = dict[str, Any]


def presets() -> list[str]:
    """Names of the clusters that come with the package."""
    return _names(files("partitioner").joinpath("clusters"))


def read_cluster(name: str | Path) -> tuple[Tables, Path]:
    """The tables of a preset by name, or of a TOML file by path, whole; and the folder that they lie in.

    Raises InputError for an unknown name (with the nearest) or an unreadable file.
    """
    path = Path(name)
    data = _cluster_file(name)
    data.pop(_WHY, None)
    for key in _WITH_BASE:
        if isinstance(data.get(key), dict):
            data[key] = _whole(data[key], str(name))
            data[key].pop(_WHY, None)
    return data, path.parent


def reasons(name: str | Path) -> dict[str, str]:
    """By the path of a number (``device.share``) or of a table, where it comes from, as the files say."""
    data = _cluster_file(name)
    found = _told(data, str(name))
    for key in _WITH_BASE:
        rows = _whole(data[key], str(name))[_WHY] if isinstance(data.get(key), dict) else {}
        found |= {f"{key}.{field}": text for field, text in rows.items() if f"{key}.{field}" not in found}
    return _BY_DEFAULT | found


def _cluster_file(name: str | Path) -> Tables:
    path = Path(name)
    if path.suffix != ".toml":
        return _parsed(_resource("clusters", str(name), "cluster", "; or name a .toml file"), str(name))
    try:
        return _parsed(path.read_text(), str(name))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _whole(table: Tables, origin: str, depth: int = 0) -> Tables:
    """A table over the part that it is based on; of [why] both."""
    base = table.get("base")
    if base is None:
        return {**table, _WHY: _told(table, origin)}
    if not is_name(base) or depth == _DEEPEST:
        raise InputError(f"{origin}: base must be the name of a part, it is {shown(base)}")
    below = _whole(_parsed(_resource("hardware/parts", base, "part"), base), origin, depth + 1)
    kept = {key: text for key, text in below[_WHY].items() if key.partition(".")[0] not in table}
    reasons = kept | _told(table, origin)
    return below | {key: value for key, value in table.items() if key != "base"} | {_WHY: reasons}


def _told(table: Tables, origin: str) -> dict[str, str]:
    """Its table [why]."""
    found = table.get(_WHY, {})
    if not isinstance(found, dict) or not all(is_name(text) for text in found.values()):
        raise InputError(f"{origin}: [{_WHY}] must hold a line of text for each number, it is {shown(found)}")
    return found


def _resource(folder: str, name: str, what: str, mend: str = "") -> str:
    where = files("partitioner").joinpath(folder)
    names = _names(where)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.0)[0]
        raise InputError(f"there is no {what} {cut(name)}: the nearest is {near}{mend}")
    return where.joinpath(f"{name}.toml").read_text()


def _names(folder: Traversable) -> list[str]:
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def _parsed(text: str, origin: str) -> Tables:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not TOML: {error}") from error
