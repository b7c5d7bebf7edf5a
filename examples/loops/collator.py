"""Batches as a Trainer's collator makes them, padded to their longest, out of a loader whose position is saved."""

import sys

import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoModelForCausalLM

generator = torch.Generator().manual_seed(1)
texts = [torch.randint(1, 64, (12 + n % 9,), generator=generator) for n in range(44)]


def collate(rows):
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = StatefulDataLoader(texts, batch_size=8, shuffle=True, generator=generator, collate_fn=collate)
for batch in loader:
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.4f}")
torch.save({"model": model.state_dict(), "loader": loader.state_dict()}, "saved.pt")
