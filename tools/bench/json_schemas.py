"""JSON Schemas of plan and report files of their dataclasses: ``python -m tools.bench.json_schemas DIR``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from partitioner.plan.json_document import schema
from partitioner.plan.migrate import VERSION
from partitioner.plan.plan import Document
from runtime.report import KIND, Report
from tools.screen import written


def schemas() -> dict[str, dict[str, Any]]:
    """By file name."""
    report = schema(Report, "A run of a plan: what it did, beside what was predicted")
    report["properties"] = {"kind": {"const": KIND}, "version": {"const": VERSION}, **report["properties"]}
    report["required"] = ["kind", "version", *report["required"]]
    return {"plan.schema.json": schema(Document, "A partition plan"), "report.schema.json": report}


def main(arguments: list[str]) -> int:
    """Write them into a folder."""
    for name, found in schemas().items():
        written(str(Path(arguments[0]) / name), json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
