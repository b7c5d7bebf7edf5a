"""A decoder that answers: a base on documentation, trained further on dialogues whole, and by adapters alone.

    python examples/conversation/run.py [--quick] [--out DIR]
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
import application
from dialogues import SPECIAL, Message, dialogues, packed, written
from model import model, with_adapters
from text.documents import documents
from tokenizers import Tokenizer
from torch import Tensor

from runtime import Engine, parallelize
from runtime.state.learning_rates import warmup_cosine

MODEL, ADAPTED = (f"{Path(__file__).with_name('model.py')}:{name}" for name in ("model", "adapted"))
SIZE, SMALL = {"vocab": 2048, "seq": 128}, {"vocab": 512, "seq": 128, "hidden": 48, "mlp": 96, "layers": 2}
BATCH, RANK = 8, 8  # rows a step; of adapters


def main() -> None:
    app = application.started("conversation", __doc__ or "")
    out, settings, steps = app.out, SMALL if app.quick else SIZE, 6 if app.quick else 80
    with app.timed("data"):
        found = dialogues()
        test = [messages for messages in found if application.is_held_out(messages[0]["content"].lower(), 8)]
        train = [messages for messages in found if messages not in test]
        texts = list(documents().values())
        random.Random(0).shuffle(texts)
        application.as_lines(out / "documents.jsonl", texts[: 40 if app.quick else None])
        folder = out / "tokenizer"
        folder.mkdir(exist_ok=True)
        plain = [*texts, *(written(messages) for messages in train)]
        coder = folder / "tokenizer.json"
        application.trained_tokenizer(plain, settings["vocab"], SPECIAL).save(str(coder))
        shutil.copy(Path(__file__).with_name("chat_template.jinja"), folder)
    alone = settings | {"documents": False}
    with app.timed("plan"):
        whole = app.planned("whole", MODEL, settings, BATCH, ["dp=2"])
        lora = app.planned("lora", ADAPTED, settings | {"rank": RANK}, BATCH, ["tp=2"])
        app.planned("chat", MODEL, alone, 1, [], devices=1)
    if not app.quick:
        with app.timed("verify"):
            app.partitioner("verify", lora)
    base, weights, tuned, adapters = (app.fresh(name) for name in ("base", "weights", "tuned", "adapters"))
    with app.timed("train the base"):
        app.partitioner(
            "run", whole, "--data", out / "documents.jsonl", "--tokenizer", coder, "--pack",
            "documents", "--lr", 2e-3, "--steps", 2 * steps, "--warmup", steps // 5, "--checkpoint", base,
        )  # fmt: skip
        app.partitioner("export", whole, base, weights)
    given = {"train": train, "test": test, "tokenizer": coder, "weights": weights, "settings": settings, "steps": steps}
    with app.timed("train all of it"):
        full = app.on_ranks(2, trained, plan=whole, checkpoint=tuned, lr=1e-3, rank=0, **given)
    with app.timed("train adapters"):
        low = app.on_ranks(2, trained, plan=lora, checkpoint=adapters, lr=5e-3, rank=RANK, **given)
    with app.timed("answer"):
        asked = [messages[0]["content"] for messages in random.Random(1).sample(test, 8)]
        words = ["--chat", "--tokenizer", folder, "--max-tokens", 40]
        said = app.continued(MODEL, alone, 1, asked, *words, "--checkpoint", tuned)
        adapted = app.continued(ADAPTED, alone | {"rank": RANK}, 1, asked, *words, "--checkpoint", adapters)
    figures = {
        "dialogues": f"{len(train)} to train on, {len(test)} held out",
        "loss of answers, of the base": round(full["before"], 3),
        "trained whole": round(full["after"], 3),
        "by adapters": round(low["after"], 3),
        "parameters trained": f"{full['parameters']:,} and {low['parameters']:,}",
    }
    rows = [{"asked": a, "whole": s, "adapters": d} for a, s, d in zip(asked, said, adapted, strict=True)]
    app.told(model(**settings)[0], "dp 2 and tp 2", "1 rank", figures, rows)


def trained(
    train: list[list[Message]], test: list[list[Message]], tokenizer: str, weights: str, settings: dict[str, int],
    steps: int, plan: str, checkpoint: str, lr: float, rank: int,
) -> dict[str, Any]:  # fmt: skip
    """On a rank: the base trained on dialogues, by adapters of ``rank`` if there is one; its loss on others."""
    coder = Tokenizer.from_file(tokenizer)
    plain, example = model(**settings)
    module = application.with_weights(plain, weights).train()
    module = with_adapters(module, rank) if rank else module
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    rate = warmup_cosine(max(steps // 10, 1), steps)
    engine = parallelize(module, example, global_batch=BATCH, plan=plan, clip=1.0, lr=lr, lr_lambda=rate)
    held_out = packed(coder, test, settings["seq"])
    before = loss_of(engine, held_out)
    order = random.Random(0)
    while engine.steps_done < steps:
        order.shuffle(train)
        rows = packed(coder, train, settings["seq"])
        for batch in batches(rows)[: steps - engine.steps_done]:
            if len(batch["tokens"]) == BATCH:
                engine.step(engine.own(batch))
    engine.save(checkpoint)
    return {"before": before, "after": loss_of(engine, held_out), "parameters": count}


def batches(rows: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Of BATCH rows each, the last of what is left."""
    parts = {name: tensor.split(BATCH) for name, tensor in rows.items()}
    return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]


def loss_of(engine: Engine, rows: dict[str, Tensor]) -> float:
    """The mean of all labels that are asked for."""
    found = [(float(engine.evaluate(engine.own(b))), int((b["labels"][:, 1:] >= 0).sum())) for b in batches(rows)]
    return sum(loss * many for loss, many in found) / sum(many for _, many in found)


if __name__ == "__main__":
    main()
