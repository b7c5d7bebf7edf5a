"""A cluster of nodes of four small devices, and models that need several of them."""

from __future__ import annotations

from pathlib import Path

GPT = f"{Path(__file__).parents[2] / 'examples' / 'gpt.py'}:model"
SMALL = ["--set", "vocab=256", "hidden=64", "heads=4", "seq=32", "layers=4"]
LLAMA = ["hf:llama", "--seq", "32", "--set", "hidden_size=64", "intermediate_size=96", "num_hidden_layers=4"]
LLAMA += ["num_attention_heads=4", "num_key_value_heads=4", "vocab_size=256"]


def cluster(folder: Path, room: float) -> str:
    """A file of one; tensors fill 0.9 of a device's memory, ``room`` bytes."""
    path = folder / f"small-{room:g}.toml"
    path.write_text(
        f'name = "small"\nattention = "flash"\n[device]\nbase = "h100-sxm-80gb"\nmemory_bytes = {room / 0.9!r}\n'
        '[node]\nbase = "nvlink-4"\ndevices = 4\n'
        "[network]\nbytes_per_second = 5e10\nefficiency = 0.9\nlatency_seconds = 1e-5\n"
    )
    return str(path)
