"""Tiny versions of the fifteen models that everything must work for, each with a batch that has its awkward parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

Case = tuple[nn.Module, dict[str, torch.Tensor]]

VOCABULARY = 101
TOKENS = 16
_LLAMA: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "attention_dropout": 0.0,
}
_BERT = {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "attention_dropout")}


class Gpt(nn.Module):
    """A plain GPT as one writes it by hand: fused qkv, sdpa, learned positions, head tied to the embedding."""

    def __init__(self, width: int = 48, heads: int = 6, layers: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(64, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(GptBlock(width, heads, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.embed(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).transpose(1, 2), labels)


class GptBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True)
        x = x + self.drop(self.out(y.transpose(1, 2).reshape(b, s, d)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


def _tokens(batch: int) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (batch, TOKENS), generator=torch.Generator().manual_seed(1))


def _labels(tokens: torch.Tensor) -> torch.Tensor:
    """Labels of which each sample ignores a different number."""
    labels = tokens.clone()
    for row in range(len(labels)):
        labels[row, : 1 + row % 4] = -100
    return labels


def _text(batch: int) -> dict[str, torch.Tensor]:
    tokens = _tokens(batch)
    return {"input_ids": tokens, "labels": _labels(tokens)}


def _padded(batch: int) -> dict[str, torch.Tensor]:
    """Text whose samples end in padding of different lengths."""
    given = _text(batch)
    mask = torch.ones_like(given["input_ids"])
    for row in range(batch):
        mask[row, TOKENS - row % 5 :] = 0
    return {**given, "attention_mask": mask, "labels": given["labels"].masked_fill(mask == 0, -100)}


def _image(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(10, (batch,), generator=generator)
    return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator), "labels": labels}


def _speech(batch: int) -> dict[str, torch.Tensor]:
    features = torch.randn(batch, 8, 32, generator=torch.Generator().manual_seed(2))
    return {"input_features": features, "labels": _labels(_tokens(batch))}


def _gpt(batch: int) -> dict[str, torch.Tensor]:
    tokens = _tokens(batch)
    return {"tokens": tokens, "labels": _labels(tokens)}


_Row = tuple[str, str, dict[str, object], Callable[[int], dict[str, torch.Tensor]], tuple[str, ...]]

# config class, model class, config, batch, names of the dropout probabilities
_MODELS: dict[str, _Row] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 6,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        _text,
        ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA, _padded, ("attention_dropout",)),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", dict(_LLAMA, head_dim=8), _text, ("attention_dropout",)),
    "mistral": ("MistralConfig", "MistralForCausalLM", dict(_LLAMA, sliding_window=8), _text, ("attention_dropout",)),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        dict(_BERT, ffn_dim=96, word_embed_proj_dim=48),
        _padded,
        ("dropout", "attention_dropout"),
    ),
    "neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        _BERT,
        _text,
        ("attention_dropout", "hidden_dropout"),
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _LLAMA, _text, ("resid_pdrop", "embd_pdrop", "attention_dropout")),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        dict(_LLAMA, head_dim=8, num_hidden_layers=4, sliding_window=8),
        _text,
        ("attention_dropout",),
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        dict(_LLAMA, head_dim=8, num_hidden_layers=6, sliding_window=8),
        _text,
        ("attention_dropout",),
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        dict(_LLAMA, num_local_experts=4),
        _text,
        ("attention_dropout",),
    ),
    "bert": (
        "BertConfig",
        "BertForMaskedLM",
        _BERT,
        _padded,
        ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "d_kv": 8,
            "d_ff": 96,
            "num_layers": 3,
            "num_heads": 6,
            "decoder_start_token_id": 0,
        },
        _padded,
        ("dropout_rate",),
    ),
    "vit": (
        "ViTConfig",
        "ViTForImageClassification",
        {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "image_size": 32,
            "patch_size": 8,
            "num_labels": 10,
        },
        _image,
        ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ),
    "whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "encoder_attention_heads": 6,
            "decoder_attention_heads": 6,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "decoder_start_token_id": 1,
        },
        _speech,
        ("dropout", "attention_dropout", "activation_dropout"),
    ),
}

NAMES = ("gpt", *_MODELS)
FEW = ("gpt", "llama", "mixtral", "t5", "whisper")  # a plain decoder, groups of heads, experts, two stacks, sound
SWEEP = [name if name in FEW else pytest.param(name, marks=pytest.mark.parity) for name in NAMES]


def make(name: str, batch: int = 2, dropout: float = 0.0, **changes: object) -> Case:
    """The model in train mode with seeded weights, and a batch; ``changes`` go to its config (or to Gpt)."""
    torch.manual_seed(0)
    if name == "gpt":
        return Gpt(dropout=dropout, **changes).train(), _gpt(batch)  # type: ignore[arg-type]
    config, model, settings, inputs, dropouts = _MODELS[name]
    given = {**settings, **dict.fromkeys(dropouts, dropout), **changes}
    made = getattr(transformers, model)(getattr(transformers, config)(**given))
    return made.train(), inputs(batch)
