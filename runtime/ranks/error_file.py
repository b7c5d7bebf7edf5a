"""Why this rank failed, where torchrun looks for it: the file that TORCHELASTIC_ERROR_FILE names."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

NAMED_BY = "TORCHELASTIC_ERROR_FILE"


def leave_error(error: BaseException) -> None:
    """Nothing where nobody started this process so."""
    if os.environ.get(NAMED_BY):
        ErrorHandler().record_exception(error)


@contextmanager
def left_errors() -> Generator[None]:
    """What is raised inside is left there too."""
    try:
        yield
    except Exception as error:
        leave_error(error)
        raise
