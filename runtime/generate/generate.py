"""``generate``: prompts continued by a model, on all ranks: by one that an engine trains, or one that only answers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from partitioner.errors import InputError
from partitioner.sharding.mesh_axes import DP
from runtime.generate.answering import Answers
from runtime.generate.beams import BeamSearch
from runtime.generate.continued import Continuing
from runtime.generate.decoder import Decoder
from runtime.generate.recomputing import Recomputing
from runtime.generate.requests import Continued, Request, Stops
from runtime.generate.sampling import Sampling
from runtime.ranks.limits import START_SECONDS
from runtime.ranks.watchdog import Watchdog
from runtime.train.answer_programs import AnswerMaker, AnswerSizes

MOST_KEPT = 8  # decoders of an engine, each with its caches
CHUNK, ROWS = 64, 8  # positions of a call that reads prompts; texts at once of a data rank
LIKELIEST = Sampling()
_KEPT: weakref.WeakKeyDictionary[Answers, dict[AnswerSizes, Decoder]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Answer:
    """New ``tokens`` behind a prompt, the one that ended them left out, and why they ended: "stop" or "length".

    ``score``: of a beam search, by which this one is the best that it found.
    """

    tokens: tuple[int, ...]
    finish: str
    score: float | None = None


def generate(
    engine: Answers,
    prompts: Sequence[Sequence[int]] | None = None,
    *,
    sources: Sequence[Mapping[str, torch.Tensor]] | None = None,
    most: int = 128,
    sampling: Sampling = LIKELIEST,
    ends: Sequence[int] = (),
    stops: Stops | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
    cache: bool = True,
    rows: int = ROWS,
    chunk: int = CHUNK,
    tell: Callable[[Continued], object] | None = None,
) -> list[Answer]:
    """Continue each of ``prompts``, tokens, by at the most ``most`` more; all ranks call it with the same and get all.

    ``sources``: of a model that is given one (an encoder and a decoder), its inputs beside the text's tokens, of one
    sample each, ``{"input_ids": (positions,)}``; prompts are then what answers begin with, None: as the model itself
    begins them. ``ends``: tokens that end a text; ``stops`` is told the new tokens, whether they do. More than one of
    ``beams``: the likeliest text that a search with so many finds, by its log probability divided by the length to the
    power of ``length_penalty``; nothing is drawn then. Without a ``cache`` every token is made by all of its text, and
    every length traced anew: of models whose answers can't be made position by position. ``rows`` texts, or beams of
    them, run at once on each data rank, others follow where one ends; prompts are read ``chunk`` positions at a time.
    ``tell`` is told of each new token of this data rank's texts. Raises InputError for a prompt without tokens, or
    with one that the model does not know, and NotDerived, naming the op, for a model whose answers can't be made
    position by position.
    """
    if min(most, rows, chunk, beams) < 1:
        raise InputError(f"most, rows, chunk and beams must be positive, not {most}, {rows}, {chunk}, {beams}")
    if beams > 1 and (sampling != LIKELIEST or stops or tell or not cache):
        raise InputError("beam search looks for the likeliest text, with a cache: it draws none and streams none")
    texts = _texts(engine, prompts, sources, most)
    found = dict[int, Answer]()
    by_source: dict[int | None, list[int]] = {}
    for n in range(len(texts)):
        by_source.setdefault(_positions(sources[n]) if sources else None, []).append(n)
    longest = max(map(len, texts), default=0) + most
    for source, numbers in by_source.items():
        many = max(beams, min(rows // beams, len(numbers)) * beams)
        sizes = AnswerSizes(longest, many, min(chunk, longest), source)
        asked = [
            Request(prompt=texts[n], most=most, sampling=sampling, ends=frozenset(ends), stops=stops, number=n,
                    source=sources[n] if sources else None)
            for n in numbers
        ]  # fmt: skip
        decoder = decoder_of(engine, sizes) if cache else Recomputing(engine, _maker(engine), sizes)
        _check_sources(decoder.inputs, sources)
        _check_tokens(decoder.vocabulary, asked)
        search = BeamSearch(decoder, beams, length_penalty) if isinstance(decoder, Decoder) and beams > 1 else None
        found |= _answers(engine, decoder, asked, tell, search)
    return [found[n] for n in range(len(texts))]


def _texts(
    engine: Answers, prompts: Sequence[Sequence[int]] | None, sources: Sequence[Mapping[str, torch.Tensor]] | None,
    most: int,
) -> list[tuple[int, ...]]:  # fmt: skip
    """What every answer begins with."""
    if prompts is None:
        if sources is None:
            raise InputError("give prompts, or sources to a model that begins its answers itself")
        if not (begins := _maker(engine).begins(most + 1)):
            raise InputError("the model does not begin its answers itself: give prompts")
        return [begins] * len(sources)
    if sources is not None and len(sources) != len(prompts):
        raise InputError(f"there are {len(prompts)} prompts and {len(sources)} sources: give one for each")
    if empty := [n for n, prompt in enumerate(prompts) if not len(prompt)]:
        raise InputError(f"prompt {empty[0]} has no tokens: give each at least one")
    return [tuple(map(int, prompt)) for prompt in prompts]


def _check_sources(inputs: Sequence[str], sources: Sequence[Mapping[str, torch.Tensor]] | None) -> None:
    names = set(inputs)
    given = [set(source) for source in sources] if sources is not None else [set[str]()]
    if wrong := next((g for g in given if g != names), None):
        have, needs = (", ".join(sorted(words)) or "nothing" for words in (wrong, names))
        raise InputError(f"beside its tokens the model is given {needs}, and a source of a text holds {have}")


def _check_tokens(many: int | None, asked: Sequence[Request]) -> None:
    if many is None:
        return
    for request in asked:
        if (wrong := next((t for t in request.prompt if not 0 <= t < many), None)) is not None:
            raise InputError(f"prompt {request.number} has token {wrong}, the model knows 0 to {many - 1}")


def _positions(source: Mapping[str, torch.Tensor]) -> int | None:
    """Of a source of tokens; None of any other, which has one size."""
    found = [t.shape[0] for t in source.values() if t.dim() == 1 and not t.is_floating_point()]
    return found[0] if found else None


def _answers(
    engine: Answers, decoder: Decoder | Recomputing, asked: list[Request], tell: Callable[[Continued], object] | None,
    search: BeamSearch | None,
) -> dict[int, Answer]:  # fmt: skip
    """By number; each data rank makes its share, all get all."""
    data_ranks, own = engine.groups.size(DP), engine.groups.coordinates[DP]
    found = dict[int, Answer]()
    for request, best in search.all_of(asked[own::data_ranks]) if search else ():
        found[request.number] = _answer(request, best.tokens, best.finish, best.score)
    for text in Continuing(decoder).all_of(asked[own::data_ranks]) if search is None else ():
        if tell is not None:
            tell(text)
        if text.finish:
            found[text.request.number] = _answer(text.request, text.tokens, text.finish)
    engine.forget_gathered()
    if data_ranks > 1:
        parts: list[dict[int, Answer]] = [{} for _ in range(data_ranks)]
        dist.all_gather_object(parts, found, group=engine.groups.group(DP))
        found = {n: answer for part in parts for n, answer in part.items()}
    return found


def _answer(request: Request, tokens: Sequence[int], finish: str, score: float | None = None) -> Answer:
    return Answer(tuple(tokens[:-1] if tokens[-1] in request.ends else tokens), finish, score)


def decoder_of(engine: Answers, sizes: AnswerSizes) -> Decoder:
    """What continues texts of these sizes on this rank; the last few are kept with the engine."""
    kept = _KEPT.setdefault(engine, {})
    for known, decoder in kept.items():
        if replace(known, length=sizes.length) == sizes and known.length >= sizes.length:
            return decoder
    with Watchdog(START_SECONDS, "tracing the model for answers"):
        decoder = Decoder(_maker(engine)(sizes), engine.groups, engine.worker_of, engine.limits)
    while len(kept) >= MOST_KEPT:
        del kept[next(iter(kept))]
    kept[sizes] = decoder
    return decoder


def _maker(engine: Answers) -> AnswerMaker:
    if engine.answers is None:
        raise InputError("this engine was made of a Program alone: make it by parallelize to generate with it")
    return engine.answers
