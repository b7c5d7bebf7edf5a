"""The store through which ranks find one another: in the process that started them, else in that of rank 0."""

from __future__ import annotations

import os
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

CONNECT = timedelta(seconds=30)
SERVED_OUTSIDE = "TORCHELASTIC_USE_AGENT_STORE"  # by torchrun, or by our launcher
ATTEMPT = "TORCHELASTIC_RESTART_COUNT"


def serve() -> TCPStore:
    """A store for ranks that this process starts."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def served(port: int) -> dict[str, str]:
    """The variables that lead ranks to it."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), SERVED_OUTSIDE: "True", ATTEMPT: "0"}


def whose() -> str:
    """In whose process it is."""
    return "the launcher's" if os.environ.get(SERVED_OUTSIDE) == "True" else "rank 0's"


def join(timeout: timedelta = CONNECT) -> Store:
    """The store of this start of the ranks, which MASTER_ADDR and MASTER_PORT lead to."""
    outside = os.environ.get(SERVED_OUTSIDE) == "True"
    host, port, first = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), os.environ["RANK"] == "0"
    return named(TCPStore(host, port, None, first and not outside, timeout, False, multi_tenant=True))


def named(store: Store) -> Store:
    """What this start of the ranks keeps in the store; another start may have been before."""
    return PrefixStore(f"ranks/{os.environ.get(ATTEMPT, '0')}", store)
