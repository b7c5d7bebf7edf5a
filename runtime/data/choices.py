"""What may be chosen of how data is read, readable without torch and numpy."""

from __future__ import annotations

FIELD = "text"  # of JSON lines and parquet
PLAIN, DOCUMENTS = "plain", "documents"
PACKS = (PLAIN, DOCUMENTS)  # as one text | each document as if it stood alone
