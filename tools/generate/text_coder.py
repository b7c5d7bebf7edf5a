"""Texts as tokens and back: by bytes, or by a folder or file of the tokenizers library, with its chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from partitioner.errors import InputError
from runtime.data.tokens import ENDS, tokenizer_file

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
Message = Mapping[str, str]  # role, content


@dataclass(frozen=True)
class TextCoder:
    """``ends``: tokens that end a text. ``special``: texts of special tokens by name, for ``template``, a Jinja text,
    "" for none."""

    encode: Callable[[str], list[int]]
    encode_plain: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    ends: frozenset[int]
    special: Mapping[str, str]
    template: str = ""

    def prompt(self, text: str) -> list[int]:
        """A text to be continued, with what the tokenizer puts around one; raises InputError where nothing is left."""
        found = self.encode(text)
        if not found:
            raise InputError(f"the prompt {text[:40]!r} has no tokens: give at least a character")
        return found

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """A dialogue up to where the next answer begins; raises InputError where there is no template, or it fails."""
        if not self.template:
            raise InputError(f"the tokenizer has no chat template: put {TEMPLATE} beside it")
        asked = {"messages": list(messages), "add_generation_prompt": True, "tools": None, "documents": None}
        values = {**self.special, **asked}
        try:
            return self.encode_plain(_environment().from_string(self.template).render(**values))
        except (TemplateError, TypeError, ValueError) as error:  # the last two are of what it does with values
            raise InputError(f"the chat template: {error}") from error

    def stops(self, words: Sequence[str]) -> Callable[[Sequence[int]], bool] | None:
        """Whether one of ``words`` is in the text of some tokens; None for no words."""
        return (lambda tokens: any(word in self.decode(tokens) for word in words)) if words else None


def text_coder(path: str | None) -> TextCoder:
    """Of a ``tokenizer.json``, or a folder that holds one, None: bytes; raises InputError where there is none."""
    if path is None:
        return TextCoder(_bytes, _bytes, _text, frozenset(), {})
    given = Path(path)
    file = given / TOKENIZER if given.is_dir() else given
    found = tokenizer_file(file)
    config = _read(file.parent / CONFIG)
    special = {name: _content(config[name]) for name in ("bos_token", "eos_token", "pad_token") if config.get(name)}
    ends = [special["eos_token"]] if "eos_token" in special else ENDS
    numbers = frozenset(n for word in ends if (n := found.token_to_id(word)) is not None)
    own = file.parent / TEMPLATE
    template = own.read_text() if own.is_file() else _template(config.get("chat_template") or "")
    return TextCoder(
        lambda text: found.encode(text).ids, lambda text: found.encode(text, add_special_tokens=False).ids,
        lambda ids: found.decode(list(ids)), numbers, special, template,
    )  # fmt: skip


def _bytes(text: str) -> list[int]:
    return list(text.encode())


def _text(ids: Sequence[int]) -> str:
    return bytes(n for n in ids if n < 256).decode(errors="replace")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} can't be read: {error}; mend or remove it") from error


def _template(given: Any) -> str:
    """That of conversations, where there are several by name."""
    if isinstance(given, str):
        return given
    named = {row["name"]: row["template"] for row in given}
    if "default" not in named:
        raise InputError(f"the tokenizer has the chat templates {', '.join(named)}, none by the name default")
    return named["default"]


def _content(word: Any) -> str:
    return str(word["content"] if isinstance(word, dict) else word)


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers renders templates: nothing of them is executed that is not of the template's own language."""

    def refuse(words: str) -> str:
        raise TemplateError(words)

    def as_json(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    made.filters["tojson"] = as_json
    made.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.now().strftime(form))  # type: ignore[arg-type]
    return made


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant says, for training; here it says nothing more."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands in it."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
