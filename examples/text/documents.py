"""Documentation and licences of Python and of the packages that are installed beside this one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

SUFFIXES = {".md", ".rst", ".txt"}
NAMES = {"license", "copying", "notice", "readme", "metadata"}  # METADATA: fields, then what the package index shows
TABLES = {"test", "tests"}  # folders whose text files hold numbers
LEAST = 200  # characters of a document


def documents() -> dict[str, str]:
    """By name, in its order; a paragraph that several have, as licences do, stands in the first of them alone."""
    seen = set[str]()
    found = dict[str, str]()
    for name, text in sorted(_texts()):
        paragraphs = [p.strip("\n") for p in text.replace("\r\n", "\n").split("\n\n")]
        new = [p for p in paragraphs if p.strip() and not (_plain(p) in seen or seen.add(_plain(p)))]
        if len(whole := "\n\n".join(new)) >= LEAST:
            found[name] = whole
    return found


def _texts() -> Iterator[tuple[str, str]]:
    yield from ((f"python/{name}", text) for name, text in topics.items())
    for package in importlib.metadata.distributions():
        for file in package.files or ():
            is_text = file.suffix in SUFFIXES or file.name.lower() in NAMES
            path = Path(str(file.locate()))
            if is_text and not TABLES.intersection(file.parts) and path.is_file():
                try:
                    text = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:  # in another encoding: not said in which
                    continue
                yield file.as_posix(), text.partition("\n\n")[2] if file.name == "METADATA" else text


def _plain(paragraph: str) -> str:
    """Without how it is broken into lines."""
    return " ".join(paragraph.lower().split())
