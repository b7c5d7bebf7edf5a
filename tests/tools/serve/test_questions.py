"""What clients ask: fields as OpenAI has them, each impossible value refused by its name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from word_tokenizer import tokenizer

from runtime.generate.requests import Request
from runtime.generate.sampling import Sampling
from tools.generate.text_coder import TextCoder, text_coder
from tools.serve.questions import Chat, Completion, Served, question, requests
from tools.serve.refusal import Refusal

SERVED = Served("m", 64, 200, frozenset({3}))
BYTES = text_coder(None)
CHATS = replace(BYTES, template="{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}")


def made(body: Any, kind: type[Completion] | type[Chat] = Completion, coder: TextCoder = BYTES) -> list[Request]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests(question(kind, text, SERVED), coder, SERVED)


def refused(body: Any, kind: type[Completion] | type[Chat] = Completion, coder: TextCoder = BYTES) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        made(body, kind, coder)
    return refusal.value


def test_defaults_are_those_of_openai() -> None:
    (found,) = made({"prompt": "ab", "seed": 5})
    sampling = Sampling(temperature=1.0, seed=5)
    assert found == Request(prompt=(97, 98), most=16, sampling=sampling, ends=frozenset({3}))


def test_each_field_says_how_tokens_are_chosen() -> None:
    own = {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "repetition_penalty": 1.5, "seed": -3}
    (found,) = made({"prompt": "ab", "max_tokens": 3, **own})
    assert (found.sampling, found.most) == (Sampling(**own), 3)  # type: ignore[arg-type]
    (found,) = made({"prompt": "ab", "temperature": 0})
    assert found.sampling.temperature == 0


def test_without_a_seed_each_answer_is_another() -> None:
    first, second = made({"prompt": "ab"}), made({"prompt": "ab"})
    assert first[0].sampling.seed != second[0].sampling.seed


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("ab", [(97, 98)]), (["a", "b"], [(97,), (98,)]), ([5, 6], [(5, 6)]), ([[5], [6, 7]], [(5,), (6, 7)])],
)
def test_prompts_are_texts_or_tokens(prompt: object, tokens: list[tuple[int, ...]]) -> None:
    assert [found.prompt for found in made({"prompt": prompt})] == tokens


def test_unknown_fields_are_ignored_and_idle_ones_too() -> None:
    idle = {"n": 1, "echo": False, "logprobs": None, "logit_bias": {}, "presence_penalty": 0, "user": "x", "zzz": [1]}
    assert made({"prompt": "ab", "seed": 1, "best_of": 1, **idle}) == made({"prompt": "ab", "seed": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2), ("n", True), ("best_of", 3), ("echo", True), ("logprobs", 0), ("logprobs", True), ("suffix", "x"),
        ("presence_penalty", 0.5), ("logit_bias", {"5": 1}), ("tools", [{}]), ("response_format", {"type": "json"}),
    ],
)  # fmt: skip
def test_what_would_make_another_answer_is_refused(name: str, value: object) -> None:
    found = refused({"prompt": "ab", name: value})
    assert (found.status, found.param, found.code) == (400, name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "0.5"), ("temperature", True), ("top_p", 0),
        ("top_p", 1.1), ("top_k", -1), ("top_k", 1.5), ("repetition_penalty", 0), ("seed", 2**63), ("seed", 0.5),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", "5"), ("stop", ""), ("stop", [""]), ("stop", ["a"] * 5),
        ("stop", 5), ("stream", "yes"), ("stream_options", {"include_usage": 1}), ("prompt", 5), ("prompt", {}),
        ("prompt", [[1.5]]), ("prompt", [1, "a"]), ("model", 5), ("stop", "a" * 1001),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(name: str, value: object) -> None:
    found = refused({"prompt": "ab", name: value})
    assert (found.status, found.param) == (400, name)
    assert name in found.message


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"prompt": "a"} x', b'{"prompt": "\xff"}', b"\xff\xfe", b"[" * 100_000,
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "max_tokens": 1e400}', b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\\ud800"}', b'{"prompt": []}', b'{"prompt": [[]]}', b'{"prompt": ""}', b'{"prompt": ["a", ""]}',
        b'{"messages": []}',
    ],
)  # fmt: skip
def test_what_is_no_question_is_refused(body: bytes) -> None:
    assert refused(body).status == 400


def test_tokens_of_another_vocabulary_are_refused() -> None:
    for prompt in ([200], [-1], [[5], [10**30]], "€"):
        assert refused({"prompt": prompt}).status == 400
    made({"prompt": [0, 199]})


def test_longer_texts_than_are_served_are_refused() -> None:
    assert made({"prompt": "a" * 60})[0].most == 4
    assert made({"prompt": "a" * 60, "max_tokens": 4})[0].most == 4
    for body in ({"prompt": "a" * 60, "max_tokens": 5}, {"prompt": "a" * 64}, {"prompt": "a" * 9999}):
        assert refused(body).code == "context_length_exceeded"


def test_another_model_is_not_there() -> None:
    made({"prompt": "a", "model": "m"})
    found = refused({"prompt": "a", "model": "gpt-4"})
    assert (found.status, found.code) == (404, "model_not_found")


def test_a_dialogue_is_put_by_the_template_and_continued_as_far_as_there_is_room() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "o"}]
    messages = [{"role": "system", "content": "x", "name": "n"}, {"role": "user", "content": parts}]
    (found,) = made({"messages": messages}, Chat, CHATS)
    assert bytes(found.prompt) == b"s:x;u:ho;"
    assert found.most == 64 - 9
    for name in ("max_tokens", "max_completion_tokens"):
        assert made({"messages": messages, name: 5}, Chat, CHATS)[0].most == 5
    assert made({"messages": messages, "max_tokens": 9, "max_completion_tokens": 5}, Chat, CHATS)[0].most == 5


@pytest.mark.parametrize(
    "messages",
    [[], "hi", [{"role": "user"}], [{"content": "a"}], [{"role": "god", "content": "a"}],
     [{"role": "user", "content": 5}], [{"role": "user", "content": None}],
     [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]],
)  # fmt: skip
def test_what_is_no_dialogue_is_refused(messages: object) -> None:
    assert refused({"messages": messages}, Chat, CHATS).param == "messages"


def test_without_a_template_there_is_no_dialogue() -> None:
    found = refused({"messages": [{"role": "user", "content": "a"}]}, Chat)
    assert (found.status, found.param) == (400, "messages")
    assert "chat template" in found.message


def test_nothing_of_a_message_is_executed(tmp_path: Path) -> None:
    words = "{{ 7 * 7 }}{% for x in y %}"
    (found,) = made({"messages": [{"role": "user", "content": words}]}, Chat, CHATS)
    assert bytes(found.prompt).decode() == f"u:{words};"
    tokenizer(tmp_path / "tokenizer.json", "</s>")
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    escaping = text_coder(str(tmp_path))
    assert refused({"messages": [{"role": "user", "content": "a"}]}, Chat, escaping).status == 400
