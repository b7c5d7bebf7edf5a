"""Adapters of low rank by peft on a frozen base, on one device; the adapter is saved as peft does."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
torch.manual_seed(0)
model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
generator = torch.Generator().manual_seed(1)
for _ in range(4):
    tokens = torch.randint(base.config.vocab_size, (8, 32), generator=generator)
    batch = {"input_ids": tokens, "labels": tokens}
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.4f}")
model.save_pretrained("adapter")
