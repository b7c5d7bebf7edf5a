"""What hangs on the length of the longest text is refused by name: it is another thing for a text that is shorter."""

from __future__ import annotations

import re

import pytest
import torch
from answers import LIMIT, Answers, Plain, derived, roughened, texts_of, worst
from hand_decoders import LONGEST, MADE, HandDecoder, Mix, by_one_op, made, tril_buffer
from refused_decoders import LENGTHS
from torch import nn

from partitioner.errors import InputError
from partitioner.generating.lengths import answering, longer
from partitioner.generating.refusal import NotDerived
from partitioner.graph.graph import placeholders
from partitioner.graph.nodes import shape_of
from tools.models.load import load

SHORT = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize("mix", LENGTHS, ids=lambda mix: mix.__name__)
def test_what_hangs_on_the_whole_length_is_refused_by_name(mix: Mix) -> None:
    with pytest.raises(NotDerived, match=re.escape(LENGTHS[mix])) as caught:
        derived(*made(mix), 40)
    assert "hangs on the whole length" in str(caught.value)


def test_what_a_softmax_forgets_may_hang_on_it() -> None:
    assert derived(*MADE["slopes_from_the_end"](), 40).walked.masks


def test_positions_beyond_their_table_are_refused() -> None:
    assert derived(*made(by_one_op), LONGEST).ends.logits
    with pytest.raises(InputError, match=f"places.weight has 64 rows, and row {LONGEST} is looked up"):
        derived(*made(by_one_op), LONGEST + 1)


def test_a_mask_beyond_its_buffer_is_refused() -> None:
    with pytest.raises(InputError, match="can't be traced in blocks.0"):
        derived(*made(tril_buffer, learned=False), LONGEST + 1)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "size", "word"),
    [("gpt2", "n_positions", "transformer.wpe.weight has 32 rows, and row 39 is looked up"),
     ("opt", "max_position_embeddings", "model.decoder.embed_positions.weight has 34 rows, and row 41 is looked up"),
     ("bart", "max_position_embeddings", "model.decoder.embed_positions.weight has 34 rows, and row 41 is looked up")],
)  # fmt: skip
def test_learned_positions_of_transformers(name: str, size: str, word: str) -> None:
    source = load(f"hf:{name}", {size: 32}, seq=24, batch=2, shrink=True)
    assert derived(source.module, source.batch, 32).ends.logits
    with pytest.raises(InputError, match=word):
        derived(source.module, source.batch, 40)


def test_rotary_tables_made_for_the_length_are_refused_where_they_are() -> None:
    """Dynamic NTK (rope_type dynamic) stretches its tables for a text that is longer than the model's longest."""
    settings = {"rope_scaling": SHORT, "max_position_embeddings": 32, "num_hidden_layers": 2}
    source = load("hf:llama", settings, seq=24, batch=2, shrink=True)
    model = roughened(source.module)
    derivation = derived(model, source.batch, 31)
    texts = texts_of((31, 12), 256)
    assert worst(Answers(model, derivation), Plain(model), texts, 256) <= LIMIT
    with pytest.raises(NotDerived, match="in model.* hangs on the whole length of the text"):
        derived(model, source.batch, 40)


@pytest.mark.parity
def test_rotary_tables_of_two_kinds_are_refused() -> None:
    """A model that takes one table up to a length, and another above it, can't be traced at all."""
    scaling = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.1, 2.2, 2.3],
    }  # fmt: skip
    settings = {"rope_scaling": scaling, "original_max_position_embeddings": 30, "max_position_embeddings": 64}
    source = load("hf:phi3", settings, seq=24, batch=2, shrink=True)
    with pytest.raises(InputError, match="the model changes model.rotary_emb.inv_freq in its forward"):
        derived(source.module, source.batch, 40)


class ByLength(HandDecoder):
    """Runs other ops on long texts."""

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1] % 2:
            return super().forward(tokens.clone() + 1 - 1, labels)
        return super().forward(tokens, labels)


def test_other_ops_for_other_lengths_are_refused() -> None:
    _, batch = MADE["by_one_op"]()
    with pytest.raises(NotDerived, match="the model is not the same for every length: first .* with 40 positions"):
        derived(ByLength(by_one_op), batch, 40)


@pytest.mark.parametrize("length", [31, 32, 33, 30, 4])
def test_sources_may_be_as_long_as_texts(length: int) -> None:
    """A table of places that a source and a text share where they are equally long is two in all other cases."""
    source = load("examples/translation/model.py:model", {"vocab": 90, "hidden": 32, "heads": 4, "seq": 40})
    batch = {"sources": source.batch["sources"][:, :32], "labels": source.batch["labels"]}
    derivation = derived(source.module, batch, length)
    assert derivation.sources == ("sources",)
    assert shape_of(placeholders(derivation.source().module.graph, "input")["sources"]) == (2, 32)


def test_longer_begins_again() -> None:
    batch = {"tokens": torch.tensor([[1, 2, 3]]), "other": torch.tensor([[4, 5, 6]])}
    assert longer(batch, ["tokens"], 4)["tokens"].tolist() == [[1, 2, 3, 1, 2, 3, 1]]
    assert longer(batch, ["tokens"], -2)["tokens"].tolist() == [[1]]
    assert longer(batch, ["tokens"], 1)["other"].tolist() == [[4, 5, 6]]


@pytest.mark.parametrize("raises", [False, True])
def test_a_model_is_afterwards_as_it_was(raises: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)).train()
    model[1].eval()
    model[2].bias.requires_grad_(False)

    def seen() -> list[bool]:
        return [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]

    before = seen()
    try:
        with answering(model):
            assert not any(seen())
            if raises:
                raise ValueError
    except ValueError:
        pass
    assert seen() == before
