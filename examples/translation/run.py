"""A translator of messages into German: planned, verified, trained on two data ranks, asked under tensor parallelism.

    python examples/translation/run.py [--quick] [--out DIR]
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import application
import sacrebleu
import torch
from messages import letters, messages
from model import END, IGNORED, PAD, model
from tokenizers import Tokenizer
from torch import Tensor

from runtime import parallelize
from runtime.generate.answering import answering
from runtime.generate.generate import generate
from runtime.state.learning_rates import warmup_cosine
from runtime.train.answer_programs import AnswerSizes

MODEL = f"{Path(__file__).with_name('model.py')}:model"
SIZE, SMALL = {"vocab": 2048, "seq": 32}, {"vocab": 512, "seq": 32, "hidden": 48, "layers": 1}
BATCH, ROWS, MOST = 32, 16, 28  # pairs a step; texts or beams at once; tokens of an answer
BEAMS = 4
SPECIAL = ("<pad>", "<begin>", "<end>")  # by their numbers: PAD, BEGIN, END


def main() -> None:
    app = application.started("translation", __doc__ or "")
    settings, steps = SMALL if app.quick else SIZE, 8 if app.quick else 1200
    with app.timed("data"):
        pairs = list(messages().items())
        # others than those on which sizes and steps were tried
        test = [pair for pair in pairs if application.is_held_out("of " + letters(pair[0]), 12)]
        train = [pair for pair in pairs if pair not in test]
        random.Random(0).shuffle(test)
        test = test[: 16 if app.quick else 200]
        tokenizer = application.trained_tokenizer((text for pair in train for text in pair), settings["vocab"], SPECIAL)
        tokenizer.save(str(app.out / "tokenizer.json"))
    with app.timed("plan"):
        plan = app.planned("plan", MODEL, settings, BATCH, ["dp=2"])
        answers = ["--for=latency", "--prompt=1", f"--answer={MOST}"]
        other = app.planned("answer", MODEL, settings, ROWS, ["tp=2"], answers)
    if not app.quick:
        with app.timed("verify"):
            app.partitioner("verify", plan)
    given = {"tokenizer": app.out / "tokenizer.json", "checkpoint": app.fresh("checkpoint"), "settings": settings}
    with app.timed("train"):
        losses = app.on_ranks(2, trained, pairs=train, plan=plan, steps=steps, **given)
    with app.timed("answer"):
        asked = [english for english, _ in test]
        said, best = (app.on_ranks(2, translated, asked=asked, plan=other, beams=n, **given) for n in (1, BEAMS))
    right = [german for _, german in test]
    figures = {
        "messages": f"{len(train)} to train on, {len(test)} held out",
        "loss": f"{losses[0]:.2f} at first, {losses[-1]:.2f} at last",
        "chrF": round(sacrebleu.corpus_chrf(best, [right]).score, 1),
        "without beams": round(sacrebleu.corpus_chrf(said, [right]).score, 1),
        "of the English itself": round(sacrebleu.corpus_chrf(asked, [right]).score, 1),
    }
    samples = [{"asked": a, "said": s, "right": r} for a, s, r in zip(asked, best, right, strict=True)]
    app.told(model(**settings)[0], "dp 2", "tp 2", figures, samples[:12])


def rows(tokenizer: Tokenizer, texts: Sequence[str], seq: int, fill: int) -> Tensor:
    """Texts, each with an end, filled up: (texts, seq); what is longer is cut."""
    found = [[*encoded.ids[: seq - 1], END] for encoded in tokenizer.encode_batch(texts)]
    return torch.tensor([ids + [fill] * (seq - len(ids)) for ids in found])


def trained(
    pairs: list[list[str]], plan: str, steps: int, tokenizer: str, checkpoint: str, settings: dict[str, int]
) -> list[float]:
    """On a rank: the loss of each step; the last one is saved."""
    coder = Tokenizer.from_file(tokenizer)
    english, german = zip(*pairs, strict=True)
    sources = rows(coder, english, settings["seq"], PAD)
    labels = rows(coder, german, settings["seq"], IGNORED)
    torch.manual_seed(0)
    rate = warmup_cosine(max(steps // 10, 1), steps)
    engine = parallelize(
        *model(**settings), global_batch=BATCH, plan=plan, clip=1.0, lr=1.5e-3, weight_decay=0.05, lr_lambda=rate
    )
    losses = list[float]()
    while len(losses) < steps:
        for chosen in torch.randperm(len(pairs)).split(BATCH)[: min(len(pairs) // BATCH, steps - len(losses))]:
            batch = {"sources": sources[chosen], "labels": labels[chosen]}
            losses.append(float(engine.step(engine.own(batch))))
    engine.save(checkpoint)
    return losses


def translated(
    asked: list[str], plan: str, tokenizer: str, checkpoint: str, settings: dict[str, int], beams: int
) -> list[str]:
    """On a rank: the likeliest German of each message, of as many as ``beams`` that a search finds."""
    coder = Tokenizer.from_file(tokenizer)
    sources = [{"sources": row} for row in rows(coder, asked, settings["seq"], PAD)]
    sizes = AnswerSizes(length=MOST + 1, rows=ROWS, chunk=1, source=settings["seq"])
    found = answering(*model(**settings), plan, checkpoint=checkpoint, sizes=sizes)
    answers = generate(found, sources=sources, most=MOST, ends=[END], rows=ROWS, chunk=1, beams=beams)
    return [coder.decode(list(answer.tokens)) for answer in answers]


if __name__ == "__main__":
    main()
