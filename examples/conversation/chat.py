"""A chat in the terminal with the model that run.py has trained: lines in, answers streamed; one process.

    python examples/conversation/chat.py [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from dialogues import Message, written
from model import model
from tokenizers import Tokenizer

from partitioner import Plan
from runtime.generate.answering import answering
from runtime.generate.generate import generate
from runtime.generate.requests import Continued
from runtime.generate.sampling import Sampling
from runtime.train.answer_programs import AnswerSizes

SAMPLING = Sampling(temperature=0.7, top_p=0.9)
MOST = 48  # tokens of an answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/apps/conversation"), metavar="DIR")
    out = parser.parse_args().out
    coder = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    plan = Plan.load(out / "chat.json")
    module, example = model(**plan.model["settings"])
    length = example["tokens"].shape[1]
    sizes = AnswerSizes(length=length, rows=1, chunk=16)
    found = answering(module, example, plan, checkpoint=out / "tuned", sizes=sizes)
    said = list[Message]()
    while line := _asked():
        said.append({"role": "user", "content": line})
        while len(prompt := coder.encode(written(said, asks=True)).ids) > length - MOST and len(said) > 1:
            said = said[2:]  # what was said first is forgotten first
        streamed = Streamed(coder)
        (answer,) = generate(
            found, [prompt[-(length - MOST) :]], most=MOST, sampling=SAMPLING, ends=[0], rows=1, chunk=sizes.chunk,
            tell=streamed,
        )  # fmt: skip
        print()
        said.append({"role": "assistant", "content": coder.decode(list(answer.tokens))})


class Streamed:
    """Writes what each new token adds to a text, but for characters of which a part has not come yet."""

    def __init__(self, coder: Tokenizer) -> None:
        self._coder, self._shown = coder, ""

    def __call__(self, text: Continued) -> None:
        whole = self._coder.decode(text.tokens, skip_special_tokens=True).rstrip("\ufffd")
        print(whole.removeprefix(self._shown), end="", flush=True)
        self._shown = whole


def _asked() -> str:
    """The next line; "" at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
