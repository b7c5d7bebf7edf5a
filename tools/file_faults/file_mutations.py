"""Documents broken in one place: cut, with a byte or a bit turned, or with one key or value of the tree made another.

What json and tomllib would not write (a key twice, bytes that are no text, nesting without end) stands in the tree as a
word, for which its bytes are put at last.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

DEPTH, LONG = 100_000, 200_000
_AGAIN, _DEEP, _BYTES = "@again@", "@deep@", "@bytes@"
HARM = "@harm@"  # an entry point that leaves a mark where it is imported
HUGE = (1e308, 10**40, 2**63)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, -1.5, 0.5, *HUGE, math.nan, math.inf, -math.inf, "", "x", "x" * LONG, "../../x",
    "/etc/passwd", "\x1b[2J", "\ud800", "[red]x[/red] {0} %s", _DEEP, _BYTES, HARM, [], {}, [[]], [None], {"": 0},
)  # fmt: skip
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Mutant:
    """What was done, where in the tree (empty for the text as a whole), and the file."""

    words: str
    place: Path
    content: bytes
    value: Any = None


def mutant(document: Any, write: Callable[[Any], str], draw: random.Random, harm: str = "x") -> Mutant:
    """The document broken in one place; ``write`` turns a tree into its text, ``harm`` stands for HARM."""
    if draw.random() < 0.25:
        words, content = draw.choice(_TEXTS)(write(document).encode(), draw)
        return Mutant(words, (), content)
    tree = copy.deepcopy(document)
    holder, place = _drawn(tree, draw)
    key = place[-1]
    choices = [_replaced, _replaced, _replaced, _nudged, _deleted, _swapped]
    choices += [_renamed, _doubled, _unheard] if isinstance(holder, dict) else [_shortened, _lengthened]
    words, value = draw.choice(choices)(holder, key, draw)
    text = write(tree).encode("utf-8", "surrogatepass")
    for word, put in (
        (f'"{_DEEP}"', "[" * DEPTH + "]" * DEPTH), (f'"{_AGAIN}"', json.dumps(key)), (_AGAIN, str(key)), (HARM, harm),
    ):  # fmt: skip
        text = text.replace(word.encode(), put.encode())
    return Mutant(words, place, text.replace(_BYTES.encode(), b"\xff\xfe\x80"), value)


def _drawn(tree: Any, draw: random.Random) -> tuple[Any, Path]:
    """A holder and the path of what it holds; places near the root are drawn as often as the many far from it."""
    holder, path = tree, [_key(tree, draw)]
    while isinstance(below := holder[path[-1]], dict | list) and below and draw.random() < 0.85:
        holder = below
        path.append(_key(holder, draw))
    return holder, tuple(path)


def _key(holder: Any, draw: random.Random) -> Any:
    return draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))


# ---- of the text


def _cut(text: bytes, draw: random.Random) -> tuple[str, bytes]:
    place = draw.randrange(len(text))
    return f"cut at byte {place}", text[:place]


def _byte(text: bytes, draw: random.Random) -> tuple[str, bytes]:
    place, value = draw.randrange(len(text)), draw.randrange(256)
    return f"byte {place} made {value}", text[:place] + bytes([value]) + text[place + 1 :]


def _bit(text: bytes, draw: random.Random) -> tuple[str, bytes]:
    place, bit = draw.randrange(len(text)), draw.randrange(8)
    return f"bit {bit} of byte {place} turned", text[:place] + bytes([text[place] ^ 1 << bit]) + text[place + 1 :]


def _put(text: bytes, draw: random.Random) -> tuple[str, bytes]:
    place, many = draw.randrange(len(text)), draw.randrange(1, 9)
    return f"{many} bytes put at {place}", text[:place] + draw.randbytes(many) + text[place:]


def _emptied(text: bytes, draw: random.Random) -> tuple[str, bytes]:
    whole = (b"", b"null", b"[]", b"{}", b"[" * DEPTH, b"\x00" * 4096, b"\xef\xbb\xbf" + text, text + text)
    content = draw.choice(whole)
    return f"made {len(content)} bytes, {content[:8]!r}", content


_TEXTS = (_cut, _cut, _byte, _bit, _bit, _put, _emptied)


# ---- of the tree: each changes what ``holder`` has under ``key``, and says how, and the new value


def _replaced(holder: Any, key: Any, draw: random.Random) -> tuple[str, Any]:
    value = draw.choice(VALUES)
    holder[key] = copy.deepcopy(value)
    return f"made {str(value)[:20]!r}", value


def _nudged(holder: Any, key: Any, draw: random.Random) -> tuple[str, Any]:
    """Another value of its kind."""
    before = holder[key]
    if isinstance(before, bool):
        value: Any = not before
    elif isinstance(before, int | float):
        value = draw.choice((before + 1, before - 1, before * 2, -before or -1, before * 1000))
    elif isinstance(before, str):
        value = draw.choice((before + "x", before[1:], before.upper(), before[::-1]))
    else:
        value = type(before)()
    holder[key] = value
    return f"nudged to {str(value)[:20]!r}", value


def _deleted(holder: Any, key: Any, draw: random.Random) -> tuple[str, Any]:
    del holder[key]
    return "deleted", None


def _swapped(holder: Any, key: Any, draw: random.Random) -> tuple[str, Any]:
    other = _key(holder, draw)
    holder[key], holder[other] = holder[other], holder[key]
    return f"swapped with {other}", holder[key]


def _renamed(holder: Any, key: Any, draw: random.Random) -> tuple[str, Any]:
    name = draw.choice((f"{key}x", str(key).upper(), "../../x", "", f"{key}.", "\ud800"))
    rows = [(name if own == key else own, value) for own, value in holder.items()]
    holder.clear()
    holder.update(rows)
    return f"renamed to {name!r}", None


def _doubled(holder: Any, key: Any, draw: random.Random) -> tuple[str, Any]:
    holder[_AGAIN] = draw.choice((holder[key], 0, "x"))
    return "there twice", holder[_AGAIN]


def _unheard(holder: Any, key: Any, draw: random.Random) -> tuple[str, Any]:
    holder["unheard_of"] = holder[key]
    return "beside an unheard_of", None


def _shortened(holder: Any, key: Any, draw: random.Random) -> tuple[str, Any]:
    del holder[key:]
    return "the list ends before it", None


def _lengthened(holder: Any, key: Any, draw: random.Random) -> tuple[str, Any]:
    holder.append(copy.deepcopy(draw.choice((holder[key], None, "x", []))))
    return "the list one longer", holder[-1]


# ---- text of a tree


def as_json(tree: Any) -> str:
    """Characters beyond ASCII as they are, but for those that no text can hold."""
    return json.dumps(tree, indent=1)


def as_toml(tree: Any) -> str:
    """Tables of tables; what TOML has no word for is left as json has it."""
    return "\n".join(_table("", tree)) + "\n"


def _table(name: str, table: dict[str, Any]) -> Iterator[str]:
    if name:
        yield f"[{name}]"
    below = {key: value for key, value in table.items() if isinstance(value, dict)}
    for key, value in table.items():
        if key not in below:
            yield f"{_word(key)} = {_value(value)}"
    for key, value in below.items():
        yield from _table(f"{name}.{_word(key)}" if name else _word(key), value)


def _word(key: str) -> str:
    return key if key == _AGAIN or key.replace("_", "").isalnum() else json.dumps(key)


def _value(value: Any) -> str:
    return repr(value) if isinstance(value, float) else json.dumps(value)
