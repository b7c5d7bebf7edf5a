"""Models that let documents read one another are refused, the small by running them and the large by their masks."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import Graph, trace
from partitioner.errors import InputError
from runtime.data.separation import check_boundaries, check_separate
from tools.models.load import load

SEQ = 12
RUN, LOOKED_AT = 20_000_000, 0  # up to how many parameters a graph is run


class Own(nn.Module):
    """A decoder of two blocks that masks attention by ``masked``, and mixes tokens by what ``beside`` names."""

    def __init__(self, masked: str, fused: bool = True, beside: str = "") -> None:
        super().__init__()
        self.masked, self.fused, self.beside = masked, fused, beside
        self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)
        self.blocks = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))

    def forward(self, tokens: Tensor, labels: Tensor, document_ids: Tensor) -> Tensor:
        seq, x = tokens.shape[1], self.embed(tokens)
        mask = torch.ones(seq, seq, dtype=torch.bool).tril()
        same = document_ids[:, :, None] == document_ids[:, None]
        for index, block in enumerate(self.blocks):
            ours = {"all": True, "first": index == 0, "none": False}.get(self.masked)
            both = (document_ids[:, None] <= document_ids[:, :, None]) & mask if ours is None else mask
            both = both & same if ours else both.expand(len(tokens), seq, seq)
            q, k, v = block(x).chunk(3, -1)
            if self.fused:
                x = x + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], both[:, None])[:, 0]
            else:
                x = x + (q @ k.transpose(1, 2)).masked_fill(~both, -1e9).softmax(-1) @ v
        x = x + x.cumsum(1) if self.beside == "cumsum" else x
        x = self.head(x) + 0 * document_ids[..., None]
        return F.cross_entropy(x[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def example() -> dict[str, Tensor]:
    tokens = torch.randint(64, (2, SEQ))
    return {"tokens": tokens, "labels": tokens.clone(), "document_ids": (torch.arange(SEQ) > 4).long().repeat(2, 1)}


@cache
def traced(*own: object) -> Graph:
    return trace(Own(*own), example())  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [RUN, LOOKED_AT])
@pytest.mark.parametrize("own", [("all", True), ("all", False)])
def test_own_masks_of_documents(own: tuple[object, ...], most: int) -> None:
    check_separate(traced(*own), example(), most)


@pytest.mark.parametrize("most", [RUN, LOOKED_AT])
@pytest.mark.parametrize(
    "own",
    [("none", True), ("none", False), ("first", True), ("first", False), ("later", True), ("all", True, "cumsum")],
)
def test_what_reads_another_document_is_refused(own: tuple[object, ...], most: int) -> None:
    with pytest.raises(InputError, match="takes document_ids and still lets a document read the one before it"):
        check_separate(traced(*own), example(), most)


@cache
def of_transformers(kind: str, **settings: object) -> tuple[Graph, dict[str, Tensor]]:
    source = load(f"hf:{kind}", {"position_ids": True, "num_hidden_layers": 1, **settings}, seq=SEQ, shrink=True)
    return trace(source.module, source.batch), source.batch


@pytest.mark.parametrize("most", [RUN, LOOKED_AT])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_transformers_make_documents_of_positions(kind: str, most: int) -> None:
    check_separate(*of_transformers(kind), most)


@pytest.mark.parametrize("most", [RUN, LOOKED_AT])
@pytest.mark.parametrize(("kind", "settings"), [("llama", {"use_cache": True}), ("opt", {})])
def test_transformers_that_do_not_are_refused(kind: str, settings: dict[str, object], most: int) -> None:
    with pytest.raises(InputError, match="takes position_ids and still lets .*with use_cache=True.*position_ids=true"):
        check_separate(*of_transformers(kind, **settings), most)


def test_a_model_that_can_not_be_told_is_refused() -> None:
    batch = example()
    with pytest.raises(InputError, match="no argument of the model tells where documents end.*takes tokens, labels"):
        check_boundaries({name: batch[name] for name in ("tokens", "labels")})
    with pytest.raises(InputError, match="no argument for labels"):
        check_boundaries({name: batch[name] for name in ("tokens", "document_ids")})
    check_boundaries(batch)
