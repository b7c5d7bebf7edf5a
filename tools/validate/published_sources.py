"""What the sources of published measurements say of their hardware and software."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Sources:
    """What tools/validate/published.toml says."""

    device: Mapping[str, str]
    cluster: Mapping[str, str]
    link: Mapping[str, Mapping[str, float]]
    framework: Mapping[str, str]
    sequence_parallel: Mapping[str, bool]


def sources() -> Sources:
    """Read the file that comes with the tools."""
    return Sources(**tomllib.loads(files("tools.validate").joinpath("published.toml").read_text()))
