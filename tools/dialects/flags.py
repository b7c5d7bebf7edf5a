"""A shell script, or a text, of command-line flags as keys and values; and flags as text, one a line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from partitioner.errors import InputError
from tools.dialects.documents import YAML, Form, Parsed

_ASSIGNED = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^{}]*))?\}|\$(\w+)")
_PRODUCT = re.compile(r"\$\(\(\s*(\d+)\s*([*+/-])\s*(\d+)\s*\)\)")
_ENDS = (";", ")", "&&", "||", "|", "&", "then", "fi", "do", "done", "else", "\\", "\n")
_TEST = re.compile(r"(?P<not>! )?(?:-(?P<empty>[zn]) (?P<of>\S*)|(?P<left>\S*) (?P<how>==?|!=) (?P<right>\S*))")
_LONGEST = 1_000_000  # of a word with its variables
Flags = dict[str, Any]


class _Script:
    """Reads words in order. ``values``: of variables; ``branches``: of each ``if`` that is open whether its branch is
    taken, and whether one of it was; None where its condition can't be told here."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.flags: Flags = {}
        self.branches: list[tuple[bool | None, bool]] = []
        self.notes: list[str] = []
        self.last: str | None = None

    @property
    def live(self) -> bool:
        return all(taken is not False for taken, _ in self.branches)

    def expanded(self, text: str) -> str:
        """With variables that the script sets; others stay as they are."""

        def value(found: re.Match[str]) -> str:
            name, default = found[1] or found[3], found[2]
            return self.values.get(name, found[0] if default is None else default.strip("\"'"))

        text = _VARIABLE.sub(value, text)
        if len(text) > _LONGEST:
            raise ValueError(f"a variable grows beyond {_LONGEST:,} characters")
        sums = {"*": lambda a, b: a * b, "+": lambda a, b: a + b, "-": lambda a, b: a - b, "/": lambda a, b: a // b}
        return _PRODUCT.sub(lambda m: str(sums[m[2]](int(m[1]), int(m[3]))) if int(m[3]) else m[0], text)

    def read(self, words: Sequence[str]) -> None:
        rest = iter(words)
        for word in rest:
            if word in ("if", "elif"):
                self.branch(word, " ".join(_until(rest, "then")))
            elif word == "else" and self.branches:
                taken, had = self.branches[-1]
                self.branches[-1] = (None if taken is None else not had, True)
                self.last = None
            elif word == "fi" and self.branches:
                self.branches.pop()
                self.last = None
            elif self.live:
                self.word(word)

    def branch(self, word: str, condition: str) -> None:
        held = self.holds(condition)
        if word == "if":
            self.branches.append((held, held is True))
        elif self.branches:
            taken, had = self.branches[-1]
            known = None if held is None or (taken is None and not had) else held and not had
            self.branches[-1] = (known, had or held is True)
        self.last = None

    def holds(self, condition: str) -> bool | None:
        """Whether a test of words that the script knows holds; None for others."""
        words = self.expanded(condition.replace(";", " "))
        text = " ".join(w for w in words.split() if w not in ("[", "]", "[[", "]]"))
        found = [self.test(part.strip()) for part in text.split("||")]
        return True if True in found else None if None in found else False

    def test(self, text: str) -> bool | None:
        found = _TEST.fullmatch(text)
        if found is None or "$" in text:
            return None
        if found["empty"]:
            held = (found["of"] == "") == (found["empty"] == "z")
        else:
            held = (found["left"] == found["right"]) == (found["how"] != "!=")
        return held != bool(found["not"])

    def word(self, word: str) -> None:
        """One word of what the shell would run."""
        if found := _ASSIGNED.fullmatch(word):
            value = self.expanded(found[2])
            self.last = None
            if value.startswith("("):
                self.piece(value)
            elif "--" in value:
                self.read(value.split())
                self.last = None
            else:
                self.values[found[1]] = value
            return
        for piece in self.expanded(word).split() if "--" in word else [self.expanded(word)]:
            self.piece(piece)

    def piece(self, word: str) -> None:
        ends = word.endswith((")", ";"))
        word = word.strip("();")
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            self.add(name, [value] if equals else [])
        elif word in _ENDS or not word or word.endswith(".py") or "[@]" in word or "[*]" in word:
            self.last = None
        elif self.last is not None and not (word.startswith("$") and self.flags[self.last]):
            self.flags[self.last].append(word)
        if ends:
            self.last = None

    def add(self, name: str, value: list[str]) -> None:
        self.last = name
        if any(taken is None for taken, _ in self.branches):
            self.notes.append(f"--{name} stands under a condition that is not known here: it is taken")
        self.flags[name] = value


def _until(words: Iterator[str], end: str) -> Iterator[str]:
    for word in words:
        if word == end:
            return
        yield word


def parse(text: str, origin: str) -> Parsed:
    """The last value of each flag; without one True, of several words a list. Raises InputError where there is none."""
    if not re.search(r"(?m)(^|[\s\"'(])--[A-Za-z]", text) and re.search(r"(?m)^\s*[\w-]+:(\s|$)", text):
        values, notes = YAML.parse(text, origin)
        return {key.rpartition(".")[2].replace("_", "-"): value for key, value in values.items()}, notes
    script = _Script()
    try:
        script.read(_words(text))
    except ValueError as error:
        raise InputError(f"{origin} is no script of flags: {error}") from error
    flags = {name: words if len(words) > 1 else words[0] if words else True for name, words in script.flags.items()}
    if not flags:
        raise InputError(f"{origin} holds no flag that begins with --: give a script or a text of flags")
    return flags, tuple(dict.fromkeys(script.notes))


def _words(text: str) -> list[str]:
    """The words of a script, comments left out; raises ValueError for a quotation that is not closed."""
    plain = "\n".join(re.sub(r"(^|\s)#.*$", r"\1", line) for line in text.splitlines())
    lexer = shlex.shlex(re.sub(r"\\\n", " ", plain), posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    return [word for word in lexer if word.strip()]


def dump(found: Mapping[str, Any], said: Sequence[str]) -> str:
    """One flag a line, quoted as a shell needs it."""
    lines = [f"# {line}" for line in said]
    for name, value in found.items():
        if value is not False:
            words = value if isinstance(value, list) else [] if value is True else [value]
            lines.append(" ".join((f"--{name}", *(shlex.quote(str(word)) for word in words))))
    return "\n".join(lines) + "\n"


FLAGS = Form("flags", parse, dump)
