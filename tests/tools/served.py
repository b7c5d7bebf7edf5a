"""``partitioner serve`` as a process, of a small model whose tokens are bytes, by a tokenizer with a chat template."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from tools.generate.command import planned
from tools.main import parser

ROOT = Path(__file__).parents[2]
LENGTH, ROWS = 256, 4
MODEL = ["examples/gpt.py:model", "--set", "layers=2", "hidden=32", "heads=2", f"seq={LENGTH}"]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def byte_tokenizer(folder: Path) -> Path:
    """One token for each byte."""
    made = Tokenizer(BPE({letter: n for n, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), ByteDecoder()
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def plan(path: Path, *words: str) -> Path:
    """A plan of the model for answers."""
    options = parser().parse_args(["serve", *MODEL, "--length", str(LENGTH), "--rows", str(ROWS), *words])
    with planned(options, LENGTH, LENGTH // 2) as (found, _):
        found.save(str(path))
    return path


@dataclass
class Served:
    process: subprocess.Popen[str]
    told: list[str] = field(default_factory=list)
    port: int = 0

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.told.append(line)

    def wait_for_port(self, seconds: float = 100) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", "".join(self.told)):
                self.port = int(found[1])
                return self.port
            time.sleep(0.05)
        raise AssertionError("".join(self.told))

    @property
    def ranks(self) -> list[int]:
        """Their processes."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found]

    def ended(self, seconds: float = 60) -> tuple[int, str]:
        """The exit status and what was told."""
        status = self.process.wait(seconds)
        self.thread.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status, "".join(self.told)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.ended()
            finally:
                self.process.kill()

    thread: threading.Thread = field(default_factory=threading.Thread)


def served(*words: str) -> Served:
    """It starts; ``wait_for_port`` waits until it listens."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.main", "serve", *words, "--port", "0", "--length", str(LENGTH)]
    process = subprocess.Popen(
        [*command, "--rows", str(ROWS)], cwd=ROOT, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    found = Served(process)
    found.thread = threading.Thread(target=found.read)
    found.thread.start()
    return found


def rss(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
