"""Engines of small models under several plans, and texts that the plain module makes by being run from the start."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from answers import Batch, roughened
from hand_decoders import MADE
from torch import nn

from runtime import Engine, parallelize
from runtime.generate.generate import LIKELIEST, generate
from runtime.generate.sampling import Sampling, choose
from tools.models.load import load
from tools.verify.plan_families import cluster

Pins = Mapping[str, str | int]
Sources = list[dict[str, torch.Tensor]]
GLOBAL = 4
LLAMA = {
    "num_hidden_layers": 4, "num_key_value_heads": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 90,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": LLAMA | {"sliding_window": 8},
    "t5": {"num_layers": 2, "d_model": 32, "num_heads": 4, "d_kv": 8, "vocab_size": 90},
    "bart": {"vocab_size": 90},
    "whisper": {"vocab_size": 90, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "gemma3_text": {"sliding_window": 8, "num_hidden_layers": 6},
    "gemma2": {"sliding_window": 8},
}
TRANSLATOR = "examples/translation/model.py:model"  # whose every block of the decoder looks at one mask of its source
BEGIN = 1  # its first token
DRAWN = Sampling(temperature=1.0, top_k=20, top_p=0.95, repetition_penalty=1.2, seed=3)
PINS: dict[str, Pins] = {
    "tp": {"tp": 2, "boundary": "whole"}, "tp sequence": {"tp": 2, "boundary": "sharded"}, "pp": {"pp": 2},
    "zero 3": {"dp": 2, "zero": 3}, "zero 1": {"dp": 2, "zero": 1},
    "tp pp": {"tp": 2, "pp": 2}, "tp zero 3": {"tp": 2, "dp": 2, "zero": 3}, "tp 4": {"tp": 4},
    "interleaved": {"pp": 2, "schedule": "interleaved", "virtual": 2, "dp": 2},
}  # fmt: skip


def model_of(name: str) -> tuple[nn.Module, Batch]:
    """In float64, of sharp attention, and an example of 2 texts of at the most 24 positions."""
    if name in MADE:
        module, batch = MADE[name]()
    elif name == TRANSLATOR:
        source = load(name, {"vocab": 90, "hidden": 32, "heads": 4, "batch": 2})
        module, batch = source.module, dict(source.batch)
    else:
        source = load(f"hf:{name}", SETTINGS.get(name, {}), seq=24, batch=2, shrink=True)
        module, batch = source.module, dict(source.batch)
    roughened(module)
    return module.double(), {n: t.double() if t.is_floating_point() else t for n, t in batch.items()}


def engine_of(module: nn.Module, batch: Batch, pins: Pins, **options: Any) -> Engine:
    """Of a copy: an engine of one rank trains the module itself. All that can be divided is."""
    copied, ranks = copy.deepcopy(module).train(), dist.get_world_size() if dist.is_initialized() else 1
    return parallelize(copied, batch, global_batch=GLOBAL, cluster=cluster(ranks), pins=pins, **options)


def prompts_of(sizes: Sequence[int], vocabulary: int = 30, seed: int = 1) -> list[list[int]]:
    """Tokens, none 0."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocabulary, (n,), generator=generator).tolist() for n in sizes]


def sources_of(batch: Batch, sizes: Sequence[int]) -> Sources:
    """One for each text: of so many tokens, or, of what has one size, of that."""
    generator, (name, like) = torch.Generator().manual_seed(4), next(iter(batch.items()))
    if like.is_floating_point():
        return [{name: torch.randn(like.shape[1:], generator=generator, dtype=like.dtype)} for _ in sizes]
    return [{name: torch.randint(3, 90, (n,), generator=generator)} for n in sizes]


class Plain:
    """The module run on each text from its start for every token."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self._seen = copy.deepcopy(module).eval(), list[torch.Tensor]()
        if not hasattr(module, "config"):
            self.module.head.register_forward_hook(lambda _, __, made: self._seen.append(made))  # type: ignore[union-attr]

    def logits(self, text: Sequence[int], source: Batch | None = None) -> torch.Tensor:
        """Of the last position."""
        tokens = torch.tensor([text])
        with torch.no_grad():
            if not hasattr(self.module, "config"):
                assert source is None or text[0] == BEGIN  # which the module puts there itself
                given = {n: t[None] for n, t in source.items()} if source else {"tokens": tokens}
                self.module(**given, labels=torch.nn.functional.pad(tokens[:, 1:], (0, 1)))
                return self._seen.pop()[0, -1]
            if source:
                given = {n: t[None] for n, t in source.items()}
                return self.module(**given, decoder_input_ids=tokens, use_cache=False).logits[0, -1]
            return self.module(input_ids=tokens, use_cache=False).logits[0, -1]

    def continued(
        self, prompt: Sequence[int], most: int, sampling: Sampling, number: int, source: Batch | None = None
    ) -> tuple[int, ...]:
        """New tokens."""
        text = list(prompt)
        for _ in range(most):
            text.append(choose(self.logits(text, source), text, sampling, number))
        return tuple(text[len(prompt) :])


def check_answers(
    module: nn.Module, engine: Engine, prompts: list[list[int]] | None, most: int, sampling: Sampling = LIKELIEST,
    sources: Sources | None = None, **how: int,
) -> list[tuple[int, ...]]:
    """What every rank gets is the same, and is what ``module`` makes; the new tokens."""
    answers = generate(engine, prompts, sources=sources, most=most, sampling=sampling, **how)
    assert {a.finish for a in answers} == {"length"}
    found = [a.tokens for a in answers]
    if dist.is_initialized():
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, found)
        assert all(part == found for part in parts)
    if not dist.is_initialized() or dist.get_rank() == 0:
        plain = Plain(module)
        begins = prompts or [[_begin(module)]] * len(sources or ())
        for n, prompt in enumerate(begins):
            assert found[n] == plain.continued(prompt, most, sampling, n, sources[n] if sources else None), n
    return found


def _begin(module: nn.Module) -> int:
    """The token with which the module begins a text of a source."""
    return module.config.decoder_start_token_id if hasattr(module, "config") else BEGIN  # type: ignore[union-attr]
