"""What a room's ``declare`` adds its commands to: argparse's own class of it is private."""

from __future__ import annotations

import argparse
from typing import Any, Protocol


class Subcommands(Protocol):
    """As ``ArgumentParser.add_subparsers`` returns it."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...
