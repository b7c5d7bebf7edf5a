"""All frameworks whose configurations are read and written, and which of them a text is of."""

from __future__ import annotations

from pathlib import Path

from partitioner.errors import InputError
from tools.dialects.bridge import BRIDGE
from tools.dialects.deepspeed import DEEPSPEED
from tools.dialects.dialect import Dialect
from tools.dialects.documents import JSON, TOML, YAML
from tools.dialects.fsdp import FSDP
from tools.dialects.megatron import MEGATRON
from tools.dialects.nanotron import NANOTRON
from tools.dialects.torchtitan import TORCHTITAN

DIALECTS = {row.name: row for row in (MEGATRON, BRIDGE, TORCHTITAN, DEEPSPEED, FSDP, NANOTRON)}


def recognised(text: str, origin: str) -> Dialect:
    """The framework of whose keys a text holds most; raises InputError where it holds none of any."""
    counts = {name: _known(dialect, text, origin) for name, dialect in DIALECTS.items()}
    best = max(reversed(counts), key=lambda name: counts[name])  # the first looks at keys without their tables
    if not counts[best]:
        forms = {".json": JSON, ".toml": TOML, ".yaml": YAML, ".yml": YAML}
        if (form := forms.get(Path(origin).suffix)) is not None:
            form.parse(text, origin)
        raise InputError(f"{origin} is no configuration of {', '.join(DIALECTS)}: say of which with --framework")
    return DIALECTS[best]


def _known(dialect: Dialect, text: str, origin: str) -> int:
    try:
        values, _ = dialect.form.parse(text, origin)
    except InputError:
        return 0
    return dialect.known(values)
