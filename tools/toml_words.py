"""A value of plain data as TOML has it."""

from __future__ import annotations

import json
from typing import Any


def toml_word(value: Any) -> str:
    """TOML has JSON's words and lists, and tables with "=" in them."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml_word(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_word, value)) + "]"
    return json.dumps(value)
