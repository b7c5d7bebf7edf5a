"""Short hashes of plain data."""

from __future__ import annotations

import hashlib
import json


def digest_of(data: object) -> str:
    """16 hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
