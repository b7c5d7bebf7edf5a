"""What clients ask, as OpenAI's API has it: fields checked one by one, and made requests of tokens."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from partitioner.errors import InputError
from runtime.generate.requests import Request
from runtime.generate.sampling import Sampling
from tools.generate.text_coder import TextCoder
from tools.serve.refusal import Refusal

COMPLETION_TOKENS = 16  # of a completion that asks for no number, as OpenAI has it
STOPS, STOP_CHARACTERS = 4, 1000
Stop = Annotated[str, StringConstraints(min_length=1, max_length=STOP_CHARACTERS)]
Positive = Annotated[int, Field(ge=1)]
# fields that would make another answer, with the values of them that don't
IDLE: dict[str, tuple[object, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,), "suffix": ("",),
    "presence_penalty": (0, 0.0), "frequency_penalty": (0, 0.0), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}  # fmt: skip


class StreamOptions(BaseModel):
    """Of a stream."""

    model_config = ConfigDict(strict=True)
    include_usage: bool = False


class Question(BaseModel):
    """What both kinds have in common."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """Texts before which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def has_usage(self) -> bool:
        """Whether a stream tells how many tokens there were."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> Sampling:
        """With OpenAI's defaults; another seed each time where none is asked for."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature, top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p, repetition_penalty=self.repetition_penalty or 1.0,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
        )  # fmt: skip


class Completion(Question):
    """Of one text or several, which may be given as tokens."""

    prompt: str | list[str] | list[int] | list[list[int]]

    def prompts(self, coder: TextCoder) -> list[list[int]]:
        """As tokens; raises Refusal where there are none."""
        is_one = isinstance(self.prompt, str) or any(isinstance(part, int) for part in self.prompt)
        given: Any = [self.prompt] if is_one else self.prompt
        try:
            found = [coder.prompt(text) if isinstance(text, str) else text for text in given]
        except InputError as error:
            raise Refusal(400, str(error), "prompt") from error
        if not found or not all(found):
            raise Refusal(400, "prompt has no tokens: give at least a character", "prompt")
        return found

    def most(self, room: int) -> int:
        """New tokens, where so many have room."""
        return self.max_tokens or min(COMPLETION_TOKENS, room)


class TextPart(BaseModel):
    """Of a message's content."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """Of a dialogue."""

    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]


class Chat(Question):
    """Of a dialogue whose next message is wanted."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = None

    def prompts(self, coder: TextCoder) -> list[list[int]]:
        """The dialogue by the tokenizer's own template; raises Refusal where it has none."""
        told = [{"role": m.role, "content": _content(m)} for m in self.messages]
        try:
            found = coder.chat(told)
        except InputError as error:
            raise Refusal(400, str(error), "messages") from error
        if not found:
            raise Refusal(400, "the chat template makes no tokens of the messages", "messages")
        return [found]

    def most(self, room: int) -> int:
        """New tokens, where so many have room."""
        return self.max_completion_tokens or self.max_tokens or room


@dataclass(frozen=True)
class Served:
    """What is served by which ``name``: texts of up to ``length`` tokens out of ``vocabulary``; ``ends`` end one."""

    name: str
    length: int
    vocabulary: int
    ends: frozenset[int]


def question(kind: type[Completion] | type[Chat], body: bytes, served: Served) -> Completion | Chat:
    """Of a request's body; raises Refusal for what is none, or can't be answered."""
    try:
        found = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        raise Refusal(400, f"{param or 'the body'}: {first['msg']}", param) from error
    for name, value in (found.model_extra or {}).items():
        if name in IDLE and value is not None and not any(_same(value, idle) for idle in IDLE[name]):
            raise Refusal(400, f"{name} is not supported here: leave it out", name, "unsupported_parameter")
    if found.model is not None and found.model != served.name:
        words = f"there is no model {found.model!r} here: it is {served.name!r}"
        raise Refusal(404, words, "model", "model_not_found")
    return found


def requests(asked: Completion | Chat, coder: TextCoder, served: Served) -> list[Request]:
    """One for each text; raises Refusal for what is too long, or is no token of the model."""
    sampling, field = asked.sampling(), "prompt" if isinstance(asked, Completion) else "messages"
    found = list[Request]()
    for prompt in asked.prompts(coder):
        room = served.length - len(prompt)
        most = asked.most(room)
        if room < 1 or most > room:
            new = "at least one new" if room < 1 else f"{most:,} new"
            words = f"texts of up to {served.length:,} tokens are served, and there are {len(prompt):,} and {new}"
            raise Refusal(400, words, field, "context_length_exceeded")
        if (wrong := next((t for t in prompt if not 0 <= t < served.vocabulary), None)) is not None:
            raise Refusal(400, f"{wrong} is no token of the model: it knows 0 to {served.vocabulary - 1}", field)
        found.append(Request(prompt=tuple(prompt), most=most, sampling=sampling, ends=served.ends))
    return found


def _content(message: Message) -> str:
    own = message.content
    return own if isinstance(own, str) else "".join(part.text for part in own)


def _same(value: object, idle: object) -> bool:
    return type(value) is type(idle) and value == idle
