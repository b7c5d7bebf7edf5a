"""A Llama on Python's library: planned, verified, trained on two ranks; functions and lines completed by other ranks.

    python examples/code/run.py [--quick] [--out DIR]
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
import application
from model import model
from sources import halves, headers, parses, sources, whole

MODEL = f"{Path(__file__).with_name('model.py')}:model"
SIZE, SMALL = {"vocab": 2048, "seq": 128}, {"vocab": 512, "seq": 128, "hidden": 48, "mlp": 96, "layers": 2}
BATCH = 8
LINES = 6  # before one that is to be completed
BODY = "   "  # begins a body: of four blanks the tokenizer leaves the last one to the word behind them


def main() -> None:
    app = application.started("code", __doc__ or "")
    out, settings = app.out, SMALL if app.quick else SIZE
    with app.timed("data"):
        texts = sources()
        test = {name: text for name, text in texts.items() if application.is_held_out(name, 20)}
        train = [text for name, text in texts.items() if name not in test]
        random.Random(0).shuffle(train)
        train = train[:80] if app.quick else train
        application.as_lines(out / "train.jsonl", train)
        tokenizer = application.trained_tokenizer(train, settings["vocab"])
        tokenizer.save(str(out / "tokenizer.json"))
        functions = _drawn([h + BODY for text in test.values() for h in headers(text)], 8 if app.quick else 64)
        lines = _drawn([pair for text in test.values() for pair in halves(text, LINES)], 8 if app.quick else 64)
    alone = settings | {"documents": False}
    with app.timed("plan"):
        plan = app.planned("plan", MODEL, settings, BATCH, ["dp=2", "zero=1"])
    if not app.quick:
        with app.timed("verify"):
            app.partitioner("verify", plan)
    tokens = ["--tokenizer", out / "tokenizer.json"]
    checkpoint, weights = app.fresh("checkpoint"), app.fresh("weights")
    with app.timed("train"):
        app.partitioner(
            "run", plan, "--data", out / "train.jsonl", *tokens, "--pack", "documents", "--lr", 2e-3,
            "--steps", 6 if app.quick else 400, "--warmup", 2 if app.quick else 40,
            "--checkpoint", checkpoint, "--report", out / "report.json",
        )  # fmt: skip
    with app.timed("answer"):
        others, trained = ["--pin", "pp=2", "--rows", 16, *tokens], ["--checkpoint", checkpoint]
        drawn = ["--temperature", 0.4, "--max-tokens", 48]
        before = app.continued(MODEL, alone, 2, functions, *others, *drawn)
        found = app.continued(MODEL, alone, 2, [*functions, *(text for text, _ in lines)], *others, *drawn, *trained)
        after, ends = found[: len(functions)], [text.partition("\n")[0] for text in found[len(functions) :]]
    with app.timed("measure"):
        app.partitioner("export", plan, checkpoint, weights)
        module = application.with_weights(model(**alone)[0], weights)
        asked = application.windows(tokenizer, list(test.values()), settings["seq"])[: 8 if app.quick else 256]
        bodies = {name: [whole(f + b) for f, b in zip(functions, texts, strict=True)]
                  for name, texts in {"before": before, "after": after}.items()}  # fmt: skip
        halved = [{"before": b, "said": s, "was": r} for s, (b, r) in zip(ends, lines, strict=True)]
        figures = {
            "files": f"{len(train)} to train on, {len(test)} held out",
            "bits a byte": round(application.bits_a_byte(module, asked, tokenizer), 3),
            "functions that parse": _share(map(parses, bodies["after"])),
            "before training": _share(map(parses, bodies["before"])),
            "lines completed as they were": _share(h["said"].rstrip() == h["was"].rstrip() for h in halved),
        }
    samples = {"functions": [text for text in bodies["after"] if parses(text)][:4], "lines": halved[:4]}
    app.told(module, "dp 2, ZeRO 1", "pp 2", figures, samples)


def _drawn(texts: list[Any], many: int) -> list[Any]:
    return random.Random(0).sample(texts, many)


def _share(rows: Iterable[bool]) -> str:
    found = list(rows)
    return f"{sum(found)} of {len(found)}"


if __name__ == "__main__":
    main()
