"""A pretrained model, from a folder that save_pretrained has written, on one device."""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
generator = torch.Generator().manual_seed(1)
for _ in range(4):
    tokens = torch.randint(AutoConfig.from_pretrained(folder).vocab_size, (8, 32), generator=generator)
    batch = {"input_ids": tokens, "labels": tokens}
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.4f}")
