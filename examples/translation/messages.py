"""English messages and their German translations, from the catalogs of the packages that are installed."""

from __future__ import annotations

import gettext
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

LOCALE = "/de/LC_MESSAGES/"
CONTEXT = "\x04"  # between what tells two equal messages apart, and the message
MOST_CHARACTERS = 72  # of a message


def messages() -> dict[str, str]:
    """Pairs of one line each, in the order of the English ones; what differs in no letter stands once."""
    found = dict[str, tuple[str, str]]()
    for english, german in sorted(_pairs()):
        is_prose = " " in english and max(len(english), len(german)) <= MOST_CHARACTERS
        if is_prose and "\n" not in english + german and english != german:
            found.setdefault(letters(english), (english, german))
    return dict(found.values())


def letters(text: str) -> str:
    """What stays of a text without case, blanks and signs."""
    return "".join(c for c in text.lower() if c.isalnum())


def _pairs() -> Iterator[tuple[str, str]]:
    for package in importlib.metadata.distributions():
        for file in package.files or ():
            if file.suffix == ".mo" and LOCALE in file.as_posix():
                with Path(str(file.locate())).open("rb") as opened:
                    yield from _translated(gettext.GNUTranslations(opened))


def _translated(catalog: gettext.GNUTranslations) -> Iterator[tuple[str, str]]:
    """Where a message has plurals, the first: GNUTranslations keeps them by (message, number)."""
    rows: dict[str | tuple[str, int], str] = catalog._catalog  # pyright: ignore
    for key, german in rows.items():
        english = (key if isinstance(key, str) else key[0]).rpartition(CONTEXT)[2].strip()
        if english and (isinstance(key, str) or key[1] == 0):
            yield english, german.strip()
