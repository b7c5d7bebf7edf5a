"""What the four applications share: commands, ranks, seconds, held-out data, tokenizers, weights, the table.

    python examples/application.py table FOLDER    prints the rows that they have written below FOLDER
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from runtime.ranks import launch

END = "<|endoftext|>"  # closes a document, and stands before the first one
LONGEST_SECONDS = 900.0  # of what is done on ranks


@dataclass
class Application:
    """One that is run: its ``name``, where it writes, whether it is to take half a minute, and its seconds by part."""

    name: str
    out: Path
    quick: bool
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def timed(self, part: str) -> Generator[None]:
        """Tells what is done, and adds up its seconds."""
        print(f"{self.name}: {part}", flush=True)
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def fresh(self, name: str) -> Path:
        """Where a folder is to be written; what an earlier run has left there is removed."""
        folder = self.out / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def partitioner(self, *words: object, reads: bool = False) -> str:
        """The command, as from a shell, which ends this one where it fails; what it prints, where that is read."""
        given = [str(word) for word in words]
        print("$ partitioner", *given, flush=True)
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "tools.main", *given], stdout=subprocess.PIPE if reads else None, text=True
        )
        if ran.returncode:
            raise SystemExit(ran.returncode)
        return ran.stdout or ""

    def planned(
        self, name: str, model: str, settings: Mapping[str, object], batch: int, pins: Sequence[str],
        more: Sequence[str] = (), devices: int = 2,
    ) -> Path:  # fmt: skip
        """The plan file NAME.json, with ``pins``; ``more`` words of the command."""
        plan = self.out / f"{name}.json"
        words = ["--cluster", "local-cpu", "--devices", devices, "--global-batch", batch, "-o", plan]
        self.partitioner("plan", model, "--set", *_pairs(settings), *words, *(f"--pin={pin}" for pin in pins), *more)
        return plan

    def continued(
        self, model: str, settings: Mapping[str, object], ranks: int, prompts: Sequence[str], *words: object
    ) -> list[str]:
        """How the model, on so many ranks, goes on with each of ``prompts``; ``words`` are the command's, pins too."""
        file = self.out / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
        asked = ["generate", model, "--set", *_pairs(settings), "--ranks", ranks, "--prompts", file, "--json", *words]
        return [answer["text"] for answer in json.loads(self.partitioner(*asked, reads=True))["answers"]]

    def on_ranks(self, ranks: int, function: Callable[..., Any], **given: Any) -> Any:
        """What ``function`` of a script returns on rank 0 of so many; it and what is given are plain data."""
        name, script = function.__name__, inspect.getsourcefile(function)
        asked, answer = self.out / f"{name}.asked.json", self.out / f"{name}.answer.json"
        asked.write_text(json.dumps(given, default=str), encoding="utf-8")
        words = [str(word) for word in (script, name, asked, answer)]
        if launch.local([sys.executable, __file__, "rank", *words], ranks, LONGEST_SECONDS).failure:
            raise SystemExit(1)
        return json.loads(answer.read_text())

    def told(self, model: nn.Module, trained: str, answered: str, figures: Mapping[str, Any], samples: object) -> None:
        """Write ``row.json``, and print it."""
        seconds = {part: round(s, 1) for part, s in {**self.seconds, "all": sum(self.seconds.values())}.items()}
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        row = {
            "application": self.name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained": trained,
            "answered": answered,
            "figures": figures,
            "seconds": seconds,
            "processor_seconds": round(sum(u.ru_utime + u.ru_stime for u in used), 1),
            "samples": samples,
        }
        text = json.dumps(row, indent=2, ensure_ascii=False)
        (self.out / "row.json").write_text(text + "\n", encoding="utf-8")
        print(text)


def started(name: str, about: str) -> Application:
    """The application that the command line asks for."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="half a minute, to see that all of it runs")
    parser.add_argument("--out", type=Path, default=Path("out") / "apps" / name, metavar="DIR")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return Application(name, options.out, options.quick)


def is_held_out(name: str, one_in: int) -> bool:
    """Whether a document is none to train on: always the same ones."""
    return zlib.crc32(name.encode()) % one_in == 0


def trained_tokenizer(texts: Iterable[str], vocab: int, special: Sequence[str] = (END,)) -> Tokenizer:
    """Pairs of bytes that stand together often, joined until there are ``vocab``; ``special`` are the first ones."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made


def as_lines(file: Path, texts: Iterable[str]) -> Path:
    """Documents as a file of JSON lines, which ``partitioner run --data`` takes."""
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def with_weights(module: nn.Module, folder: Path | str) -> nn.Module:
    """The plain module with exported weights, in eval mode."""
    load_model(module, str(Path(folder) / "model.safetensors"))
    return module.eval()


def _pairs(settings: Mapping[str, object]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def windows(tokenizer: Tokenizer, documents: Sequence[str], seq: int) -> torch.Tensor:
    """Documents, one behind the other, each behind an END, (windows, seq); a window's first token is the last of the
    window before, so that each is asked for once; what fills no window is left out."""
    end = tokenizer.token_to_id(END)
    row = torch.tensor([t for encoded in tokenizer.encode_batch(documents) for t in (end, *encoded.ids)])
    return row.unfold(0, seq, seq - 1)


@torch.no_grad()
def bits_a_byte(module: nn.Module, asked: torch.Tensor, tokenizer: Tokenizer, at_once: int = 16) -> float:
    """Of ``windows`` (windows, seq) by a plain model that returns the mean of its positions."""
    nats = sum(float(module(tokens=part, labels=part)) * part[:, 1:].numel() for part in asked.split(at_once))
    text = tokenizer.decode_batch(asked[:, 1:].tolist(), skip_special_tokens=True)
    # a character that a window's edge divides is decoded as U+FFFD on both sides, whose bytes are no more than its own
    return nats / math.log(2) / sum(len(part.encode()) for part in text)


def _on_rank(script: str, function: str, asked: str, answer: str) -> None:
    """A rank of ``on_ranks``."""
    sys.path.insert(0, str(Path(script).parent))
    spec = importlib.util.spec_from_file_location("script_of_ranks", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = getattr(module, function)(**json.loads(Path(asked).read_text(encoding="utf-8")))
    if os.environ["RANK"] == "0":
        Path(answer).write_text(json.dumps(found), encoding="utf-8")


def _print_table(folder: str) -> None:
    table = Table("application", "measured", "", box=SIMPLE)
    for file in sorted(Path(folder).glob("*/row.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        facts = {
            "parameters": f"{row['parameters']:,}", "trained under": row["trained"], "answers under": row["answered"],
            **row["figures"],
            "seconds": f"{row['seconds']['all']:.0f}, of a processor {row['processor_seconds']:.0f}",
        }  # fmt: skip
        for n, (name, value) in enumerate(facts.items()):
            table.add_row("" if n else row["application"], name, str(value), end_section=n == len(facts) - 1)
    Console().print(table)


if __name__ == "__main__":
    {"rank": _on_rank, "table": _print_table}[sys.argv[1]](*sys.argv[2:])
