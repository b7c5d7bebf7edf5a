"""The sources of Python's standard library, and what of them is to be completed."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
MOST_CHARACTERS = 100_000  # of a file: longer ones are tables


def sources() -> dict[str, str]:
    """By path below the library, in its order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(root.rglob("*.py")) if not LEFT_OUT.intersection(path.relative_to(root).parts)]
    texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8", errors="replace") for path in files}
    return {name: text for name, text in texts.items() if 0 < len(text) < MOST_CHARACTERS}


def headers(text: str) -> Iterator[str]:
    """The first line of every function at the left margin that takes more than one, ``def name(arguments):``."""
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and lines[node.lineno - 1].endswith(":\n"):
            yield lines[node.lineno - 1]


def halves(text: str, before: int) -> Iterator[tuple[str, str]]:
    """Lines of more than one word inside functions, cut in the middle: ``before`` lines and a half, and the rest."""
    lines = text.splitlines(keepends=True)
    for n in range(before, len(lines), before):
        words = lines[n].split(" ")
        if lines[n].startswith("    ") and len(lines[n].split()) > 2:
            middle = (len(words) - len(lines[n].split())) + len(lines[n].split()) // 2
            yield "".join(lines[n - before : n]) + " ".join(words[:middle]), " " + " ".join(words[middle:])


def whole(text: str) -> str:
    """A function up to its last whole line: what is behind it at the left margin is none of it."""
    lines = text.splitlines(keepends=True)
    body = next((n for n, line in enumerate(lines) if n and line.strip() and not line.startswith((" ", "\t"))), None)
    if body is None and not text.endswith("\n"):
        body = len(lines) - 1
    return "".join(lines[:body])


def parses(text: str) -> bool:
    """Whether it is Python."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):  # ValueError: of zero bytes
        return False
    return True
