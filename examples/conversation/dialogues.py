"""Dialogues of chatterbot-corpus, written by the chat template, asked for their answers alone, and packed into rows."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import yaml
from jinja2 import Environment
from tokenizers import Tokenizer
from torch import Tensor

TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text()
ROLES = ("user", "assistant")
SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>")
LEFT_OUT = {"coding.yml"}  # its answers are programs
MOST_TURNS = 6  # longer dialogues are divided
IGNORED = -100  # a label that is not asked for

Message = dict[str, str]  # role, content


def dialogues() -> list[list[Message]]:
    """Each once, in a fixed order."""
    folder = importlib.resources.files("chatterbot_corpus") / "data" / "english"
    files = sorted((f for f in folder.iterdir() if f.name not in LEFT_OUT), key=lambda f: f.name)
    found = dict[tuple[str, ...], None]()
    for file in files:
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            texts = [" ".join(str(turn).split()) for turn in turns]
            found |= {tuple(texts[n : n + MOST_TURNS]): None for n in range(0, len(texts) - 1, MOST_TURNS)}
    return [
        [{"role": ROLES[n % 2], "content": turn} for n, turn in enumerate(turns[: len(turns) // 2 * 2])]
        for turns in found if len(turns) > 1
    ]  # fmt: skip


def written(messages: Sequence[Message], asks: bool = False) -> str:
    """A dialogue as text, with ``asks`` up to where the next answer begins."""
    return Environment().from_string(TEMPLATE).render(messages=messages, add_generation_prompt=asks)


def tokens_and_labels(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Of a dialogue; a label is the token itself in an answer and its end, else -100."""
    tokens, labels = list[int](), list[int]()
    for n in range(0, len(messages), 2):
        before = len(written(messages[:n]))
        asked = tokenizer.encode(written(messages[: n + 1], asks=True)[before:]).ids
        answer = tokenizer.encode(written(messages[: n + 2])[len(written(messages[: n + 1], asks=True)) :]).ids
        tokens += [*asked, *answer]
        labels += [*[IGNORED] * len(asked), *answer]
    return tokens, labels


def packed(tokenizer: Tokenizer, chosen: Iterable[Sequence[Message]], seq: int) -> dict[str, Tensor]:
    """Rows of ``seq`` tokens, each of as many whole dialogues as find room: tokens, labels, documents (rows, seq).

    What is left of a row is a document of its own, of which nothing is asked; a longer dialogue is cut.
    """
    rows: list[list[list[int]]] = []
    for messages in chosen:
        tokens, labels = (part[:seq] for part in tokens_and_labels(tokenizer, messages))
        if not rows or len(rows[-1][0]) + len(tokens) > seq:
            rows.append([[], [], []])
        number = rows[-1][2][-1] + 1 if rows[-1][2] else 0
        for part, more in zip(rows[-1], (tokens, labels, [number] * len(tokens)), strict=True):
            part += more
    for row in rows:
        for part, fill in zip(row, (0, IGNORED, row[2][-1] + 1), strict=True):
            part += [fill] * (seq - len(part))
    return {name: torch.tensor([row[n] for row in rows]) for n, name in enumerate(("tokens", "labels", "documents"))}
