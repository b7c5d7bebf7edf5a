"""A GPT on documentation: planned, verified, trained in two stages; texts continued under tensor parallelism.

    python examples/text/run.py [--quick] [--out DIR]
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import application
from documents import documents
from model import model

MODEL = f"{Path(__file__).with_name('model.py')}:model"
SIZE, SMALL = {"vocab": 2048, "seq": 128}, {"vocab": 512, "seq": 128, "hidden": 48, "layers": 2}
BATCH = 8


def main() -> None:
    app = application.started("text", __doc__ or "")
    out, settings = app.out, SMALL if app.quick else SIZE
    with app.timed("data"):
        texts = documents()
        test = [text for name, text in texts.items() if application.is_held_out(name, 20)]
        train = [text for name, text in texts.items() if not application.is_held_out(name, 20)]
        random.Random(0).shuffle(train)
        train, test = (train[:60], test[:4]) if app.quick else (train, test)
        application.as_lines(out / "train.jsonl", train)
        tokenizer = application.trained_tokenizer(train, settings["vocab"])
        tokenizer.save(str(out / "tokenizer.json"))
    with app.timed("plan"):
        plan = app.planned("plan", MODEL, settings, BATCH, ["pp=2"])
    with app.timed("verify"):
        app.partitioner("verify", plan)
    checkpoint, weights = app.fresh("checkpoint"), app.fresh("weights")
    with app.timed("train"):
        app.partitioner(
            "run", plan, "--data", out / "train.jsonl", "--tokenizer", out / "tokenizer.json",
            "--steps", 6 if app.quick else 400, "--lr", 2e-3, "--warmup", 2 if app.quick else 40,
            "--checkpoint", checkpoint, "--report", out / "report.json",
        )  # fmt: skip
    with app.timed("answer"):
        prompts = [text[:60] for text in sorted(test, key=len)[-4:]]
        trained = ["--checkpoint", checkpoint, "--tokenizer", out / "tokenizer.json", "--pin", "tp=2"]
        drawn = ["--temperature", 0.7, "--top-p", 0.95, "--max-tokens", settings["seq"] // 2]
        written = app.continued(MODEL, settings, 2, prompts, *trained, *drawn)
    with app.timed("measure"):
        app.partitioner("export", plan, checkpoint, weights)
        module = application.with_weights(model(**settings)[0], weights)
        asked = application.windows(tokenizer, test, settings["seq"])
        figures = {
            "documents": f"{len(train)} to train on, {len(test)} held out",
            "bits a byte": round(application.bits_a_byte(module, asked, tokenizer), 3),
            "of pairs of bytes": round(pairs_of_bytes("".join(train), "".join(test)), 3),
            "before training": round(application.bits_a_byte(model(**settings)[0].eval(), asked, tokenizer), 3),
        }
    samples = [{"prompt": p, "continued": c} for p, c in zip(prompts, written, strict=True)]
    app.told(module, "pp 2", "tp 2", figures, samples)


def pairs_of_bytes(train: str, test: str) -> float:
    """Bits a byte of a bigram model with add-one smoothing."""
    seen, asked = train.encode(), test.encode()
    pairs, firsts = Counter(zip(seen, seen[1:], strict=False)), Counter(seen[:-1])
    bits = [-math.log2((pairs[a, b] + 1) / (firsts[a] + 256)) for a, b in zip(asked, asked[1:], strict=False)]
    return sum(bits) / len(bits)


if __name__ == "__main__":
    main()
