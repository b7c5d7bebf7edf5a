"""What a run reads: any documents by any tokenizer, packed, kept beside its checkpoint, refused where it can't be."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from partitioner import trace
from partitioner.errors import InputError
from partitioner.sharding.mesh_axes import DP
from tools.main import main
from tools.models.load import load
from tools.run import going_on, rank

SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 64}
SMALL |= {"num_key_value_heads": 2, "eos_token_id": 1, "bos_token_id": 1}
PACKED = SMALL | {"position_ids": True}


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    """``--data`` and what says how it is read: 60 documents of up to 15 words under "body"."""
    made = Tokenizer(WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    texts = [" ".join(f"w{(i * j) % 40}" for j in range(1 + i % 15)) for i in range(60)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    return ["--data", str(data), "--text-field", "body", "--tokenizer", str(tmp_path / "tokenizer.json")]


def test_a_run_of_packed_documents(rows: list[str], tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    plan, report, saved = (str(tmp_path / name) for name in ("plan.json", "report.json", "saved"))
    words = [f"{key}={value}" for key, value in PACKED.items()]
    place = ["--seq", "16", "--cluster", "local-cpu", "--devices", "1", "--global-batch", "4"]
    assert main(["plan", "hf:llama", "--set", *words, *place, "-o", plan]) == 0
    asked = [*rows, "--pack", "documents", "--steps", "3", "--checkpoint", saved, "--report", report]
    assert main(["run", plan, *asked]) == 0, capfd.readouterr().err
    read = json.loads(Path(report).read_text())["data"]
    assert read.startswith(f"{rows[1]}: 1 files (1 JSON lines), 60 documents, ")
    assert read.endswith(f"tokens, by {rows[-1]}, each ended by </s>")
    kept = going_on.settings(dict.fromkeys(going_on.DEFAULTS), going_on.before(saved))
    assert [kept[key] for key in ("data", "text_field", "tokenizer", "pack")] == [*rows[1::2], "documents"]


def batches(settings: dict[str, object], asked: dict[str, object], **model: object) -> Any:
    """What rank 0 of one draws of a llama."""
    source = load("hf:llama", SMALL | model, seq=16)
    place = SimpleNamespace(coordinates={DP: 0}, size=lambda axis: 1)
    trainer = SimpleNamespace(groups=place, samples_read=0)
    plan = SimpleNamespace(decisions=SimpleNamespace(seed=0), global_batch=4)
    job = SimpleNamespace(settings=going_on.DEFAULTS | asked | settings)
    graph = trace(source.module, source.batch, compare=False)
    return rank._batches(job, plan, graph, trainer, source.batch)  # type: ignore[arg-type]


def test_what_is_asked_is_drawn(rows: list[str]) -> None:
    asked: dict[str, object] = {"data": rows[1], "text_field": rows[3], "tokenizer": rows[5]}
    plain, packed = (next(batches(asked, {"pack": p}, position_ids=True)) for p in ("plain", "documents"))
    assert torch.equal(plain["tokens"], packed["tokens"])
    assert (plain["labels"] >= 0).all()
    assert ((packed["labels"] < 0) == (packed["positions"] == 0)).all()
    assert (packed["documents"].amax(1) > 0).any()


def test_what_can_not_be_is_refused(rows: list[str]) -> None:
    asked: dict[str, object] = {"data": rows[1], "text_field": rows[3], "tokenizer": rows[5]}
    with pytest.raises(InputError, match="no argument of the model tells where documents end.*position_ids=true"):
        batches(asked, {"pack": "documents"})
    with pytest.raises(InputError, match="still lets a document read the one before it"):
        batches(asked, {"pack": "documents"}, position_ids=True, use_cache=True)
    with pytest.raises(InputError, match="a vocabulary of 32 can't hold token 40 of"):
        batches(asked, {}, vocab_size=32)
    with pytest.raises(InputError, match="a vocabulary of 64 can't hold bytes"):
        batches({}, {})


def test_the_words_of_the_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["run", "plan.json", "--steps", "1", "--pack", "none"]) == 2
    assert "--pack: invalid choice: 'none' (choose from 'plain', 'documents')" in capsys.readouterr().err


def test_a_run_from_before_reads_as_it_did() -> None:
    known = going_on.settings(dict.fromkeys(going_on.DEFAULTS), {"data": "corpus.txt", "clip": 1.0})
    assert [known[key] for key in ("data", "text_field", "tokenizer", "pack")] == ["corpus.txt", "text", None, "plain"]
    assert list(going_on.changes({"data": "corpus.txt"}, known | {"pack": "documents"})) == []
