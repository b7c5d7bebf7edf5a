"""Plans for answers: the search of training, asked for a call of one position of each text, and what prompts take.

    latency       so many texts at once, in the least time
    throughput    as many texts at once as make most tokens a second, and fit with what is kept of each
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from partitioner.cluster import Cluster
from partitioner.errors import DoesNotFit, InputError
from partitioner.gc_pause import uncollected
from partitioner.generating.lengths import Lengths
from partitioner.plan.plan import Plan
from partitioner.searching.candidates import Progress, divisors
from partitioner.searching.same_state import with_state_of
from partitioner.searching.search import search
from partitioner.sharding.mesh_axes import DP

MOST_TEXTS = 1024  # of a data rank
LEAST_GAIN = 1.05  # in tokens a second, of twice as many texts


@dataclass(frozen=True)
class Asked:
    """``texts`` at once, all ranks together, None for as many as make most tokens a second; tokens of a ``prompt``, of
    which a call reads ``chunk``, and of an ``answer``."""

    texts: int | None
    prompt: int
    answer: int
    chunk: int

    def __post_init__(self) -> None:
        """Raises InputError for what can't be."""
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise InputError(f"{name} must be positive, not {value}")

    @property
    def length(self) -> int:
        """Positions of a whole text."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class AnswersPlan:
    """``plan`` of a call of one position; ``prompt_seconds`` of all calls that read a prompt, ``token_seconds`` of one
    more token of each of ``texts``."""

    plan: Plan
    texts: int
    prompt_seconds: float
    token_seconds: float

    def seconds(self, asked: Asked) -> float:
        """From the prompts to the last token."""
        return self.prompt_seconds + asked.answer * self.token_seconds

    def rate(self, asked: Asked) -> float:
        """New tokens a second, all texts together."""
        return self.texts * asked.answer / self.seconds(asked)


@uncollected()
def plan_answers(
    lengths: Lengths, cluster: Cluster, asked: Asked, pins: Mapping[str, str | int], model: Mapping[str, object],
    progress: Progress = lambda text: None,
) -> Plan:  # fmt: skip
    """The Plan of a call of one position under which ``asked`` is answered best on all of ``cluster``'s devices.

    Its notes say what prompts and tokens take; ``model`` is written into it, with what was asked. Raises InputError for
    pins that no plan can have and models whose answers can't be made position by position, DoesNotFit where none fits.
    """
    if asked.texts is not None:
        best = _of_texts(lengths, cluster, asked, asked.texts, pins, model, progress)
        return _noted(best, asked)
    found = list(_growing(lengths, cluster, asked, pins, model, progress))
    return _noted(max(found, key=lambda plan: plan.rate(asked)), asked)


def _growing(
    lengths: Lengths, cluster: Cluster, asked: Asked, pins: Mapping[str, str | int], model: Mapping[str, object],
    progress: Progress,
) -> Iterator[AnswersPlan]:  # fmt: skip
    """Twice as many texts each time, as long as they fit and make more tokens a second."""
    texts, rate = cluster.devices, 0.0
    while texts <= MOST_TEXTS * cluster.devices:
        try:
            found = _of_texts(lengths, cluster, asked, texts, pins, model, progress)
        except DoesNotFit:
            if not rate:
                raise
            return
        yield found
        if found.rate(asked) < LEAST_GAIN * rate:
            return
        texts, rate = 2 * texts, found.rate(asked)


def _of_texts(
    lengths: Lengths, cluster: Cluster, asked: Asked, texts: int, pins: Mapping[str, str | int],
    model: Mapping[str, object], progress: Progress,
) -> AnswersPlan:  # fmt: skip
    """The quickest plan of so many texts at once, whichever way they are shared among data ranks."""
    found, failure = list[AnswersPlan](), None
    for ranks in divisors(cluster.devices):
        if texts % ranks or pins.get(DP, ranks) not in (ranks, str(ranks)):
            continue
        progress(f"{texts} texts at once on {ranks} data ranks")
        rows = texts // ranks
        derivation = lengths.derivation(rows)
        one, many = (derivation.answering(n, asked.chunk) for n in (1, asked.chunk))
        fixed = {**pins, DP: ranks, "micro_batch": rows, "zero": 0}
        try:
            plan = search(one, cluster, texts, fixed, model)
        except (InputError, DoesNotFit) as error:
            failure = failure or error
            continue
        calls = -(-asked.prompt // asked.chunk)
        prompt = with_state_of(plan, many, {}, rows, trains=False, micro_batches=1).cost.step_seconds * calls
        found.append(AnswersPlan(replace(plan, pins=_words(pins)), texts, prompt, plan.cost.step_seconds))
    if not found:
        raise failure or InputError(f"{texts} texts can't be shared among the data ranks of {cluster.devices} devices")
    return min(found, key=lambda plan: plan.seconds(asked))


def _words(pins: Mapping[str, str | int]) -> dict[str, str]:
    return {name: str(value) for name, value in pins.items()}


def _noted(best: AnswersPlan, asked: Asked) -> Plan:
    """The plan, which says what it is of."""
    plan, rate = best.plan, best.rate(asked)
    said = (
        f"answers {best.texts:,} texts at once, prompts of {asked.prompt:,} tokens by {asked.chunk:,} a call, "
        f"{asked.answer:,} new ones each",
        f"prompts take {best.prompt_seconds:.3g} s, a token of each {best.token_seconds * 1e3:.3g} ms: "
        f"{best.seconds(asked):.3g} s in all, {rate:,.0f} new tokens a second",
    )
    answers = {**asdict(asked), "texts": best.texts}
    return replace(plan, model=plan.model | {"answers": answers}, notes=(*said, *plan.notes)).stamped()
