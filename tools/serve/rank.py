"""One rank of ``partitioner serve``: all step together; rank 0 also listens, and says what they step."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from partitioner.errors import InputError
from runtime.generate.answering import Answering
from runtime.generate.generate import decoder_of
from runtime.generate.together import Together, Word
from runtime.ranks.process_group import announced_rank, finish_ranks
from runtime.ranks.watchdog import Watchdog, answer_stack_signal
from runtime.train.answer_programs import AnswerSizes
from tools.generate.rank import loaded
from tools.generate.text_coder import text_coder
from tools.run.leaving import Leaving
from tools.screen import error_line
from tools.serve.desk import Desk
from tools.serve.door import Door
from tools.serve.listening import Listening, bound
from tools.serve.questions import Served
from tools.serve.rank_job import Job, job_of
from tools.serve.texts import Texts
from tools.watch.telling import MARK

BEAT_SECONDS = 0.5  # between words where nothing is asked


def main(job: Job) -> None:
    """Serve until a signal comes."""
    answer_stack_signal()
    own = bound(job.host, job.port) if not announced_rank() else None
    model = loaded(job.model)
    if len(names := model.answers.sources(job.model.length)) > 0:
        raise InputError(f"the model is given {', '.join(names)} beside its texts: generate answers, serve does not")
    sizes = AnswerSizes(job.model.length, job.model.rows, min(job.model.chunk, job.model.length))
    decoder, leaving = decoder_of(model, sizes), Leaving()
    together = Together(decoder, model.groups)
    if own is None:
        _follow(together, model, leaving)
    else:
        _lead(together, model, leaving, job, own, decoder.programs.vocabulary)
    finish_ranks()


def _follow(together: Together, model: Answering, leaving: Leaving) -> None:
    """Step as rank 0 says."""
    steps = 0
    while True:
        with Watchdog(_limit(model, steps) + BEAT_SECONDS, "waiting for rank 0, and a step of answers"):
            if together.hear(Word(), leaving.number).over:
                return
            together.step()
        steps += 1


def _lead(
    together: Together, model: Answering, leaving: Leaving, job: Job, own: socket.socket, vocabulary: int
) -> None:  # fmt: skip
    """Listen, and step what is asked for."""
    coder = text_coder(job.model.tokenizer)
    desk = Desk(job.model.rows, together.data_ranks, job.queue)
    texts = Texts(desk, coder.decode, job.timeout)
    served = Served(job.name, job.model.length, vocabulary, coder.ends)
    listening = Listening(Door(served, coder, desk, texts, job.unread, _say).app(), texts, own, job.grace)
    host, port = own.getsockname()[:2]
    _write({"listening": f"http://{f'[{host}]' if ':' in host else host}:{port}"})
    try:
        asked = _led(together, model, leaving, desk, listening)
    except BaseException:
        listening.fail()
        raise
    _write({"left": asked})


def _led(together: Together, model: Answering, leaving: Leaving, desk: Desk, listening: Listening) -> int:
    """The signal that ended it."""
    steps, asked = 0, 0
    while True:
        over = listening.is_over
        word = Word(over=True) if over else desk.take(BEAT_SECONDS)
        with Watchdog(_limit(model, steps), "a step of answers"):
            heard = together.hear(word, leaving.number)
            if over:
                return asked
            if heard.signal and not asked:
                asked = heard.signal
                listening.leave()
            listening.told(desk.heard(heard.tokens))
            together.step()
        steps += 1


def _limit(model: Answering, steps: int) -> float:
    return model.limits.step if steps else model.limits.first_step


def _say(text: str) -> None:
    _write({"log": text})


def _write(event: dict[str, object]) -> None:
    """To the process that started this one."""
    sys.stdout.write(MARK + json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(job_of(Path(sys.argv[1]).read_text()))
    except InputError as error:
        error_line(str(error))
        sys.exit(2)
