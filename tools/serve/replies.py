"""The documents of OpenAI's API that clients are answered by, whole or in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.serve.texts import Part, Text

Document = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """To one question. ``prompt_tokens``: of all its texts; ``has_usage``: whether a stream tells of them."""

    model: str
    is_chat: bool
    prompt_tokens: int
    has_usage: bool
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, texts: Sequence[Text], contents: Sequence[str]) -> Document:
        """All of it."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        choices = [self._whole(text, content) for text, content in zip(texts, contents, strict=True)]
        return self._head(kind) | {"choices": choices, "usage": self._usage(texts)}

    def first(self, texts: Sequence[Text]) -> list[Document]:
        """Before all chunks: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([self._choice(text.index, "", delta=delta)]) for text in texts] if self.is_chat else []

    def chunk(self, part: Part) -> Document:
        """A piece of a text, or why it has ended."""
        own = {"delta": {} if part.finish else {"content": part.text}} if self.is_chat else {"text": part.text}
        return self._chunk([self._choice(part.index, part.finish, **own)])

    def last(self, texts: Sequence[Text]) -> list[Document]:
        """Behind all chunks: how many tokens there were, where that is asked for."""
        return [self._chunk([]) | {"usage": self._usage(texts)}] if self.has_usage else []

    def _whole(self, text: Text, content: str) -> Document:
        message = {"role": "assistant", "content": content, "refusal": None}
        own = {"message": message} if self.is_chat else {"text": content}
        return self._choice(text.index, text.finish, **own)

    def _chunk(self, choices: list[Document]) -> Document:
        usage = {"usage": None} if self.has_usage else {}
        return self._head("chat.completion.chunk" if self.is_chat else "text_completion") | {"choices": choices} | usage

    def _head(self, kind: str) -> Document:
        key = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.key}"
        return {"id": key, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index: int, finish: str, **own: object) -> Document:
        return {"index": index, **own, "logprobs": None, "finish_reason": finish or None}

    def _usage(self, texts: Sequence[Text]) -> Document:
        new = sum(text.tokens for text in texts)
        both = self.prompt_tokens + new
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": new, "total_tokens": both}
