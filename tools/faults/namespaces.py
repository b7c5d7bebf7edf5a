"""Places of our own without being root: Linux namespaces that a sleeping process holds, and commands that run inside.

    SmallDisk    a file system of so many bytes, that can grow
    TwoHosts     two networks and one cable between them, that can be cut
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from partitioner.errors import InputError

HOLD = ("sleep", "infinity")
HOSTS, ADDRESSES, CABLE = ("one", "two"), ("10.77.0.1", "10.77.0.2"), ("cable0", "cable1")


class _Place:
    """A process that holds namespaces: ``kinds`` as unshare(1) names them, those of ``within`` else."""

    def __init__(self, kinds: Sequence[str], within: _Place | None = None) -> None:
        self._kinds = [*(within._kinds if within else []), *kinds]
        outside = within.inside() if within else []
        words = [*outside, "unshare", *kinds, "sh", "-c", f"echo here; exec {' '.join(HOLD)}"]
        self._holder = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "here\n":
            assert self._holder.stderr is not None
            error = self._holder.stderr.read().strip()
            self.end()
            raise InputError(f"no namespaces here: {error}")

    @property
    def pid(self) -> int:
        """Of the process that holds it."""
        return self._holder.pid

    def inside(self) -> list[str]:
        """The head of a command that is to run inside."""
        return ["nsenter", "-t", str(self.pid), "--preserve-credentials", *dict.fromkeys(_entered(self._kinds))]

    def run(self, *words: str) -> None:
        """A command, to its end."""
        subprocess.run([*self.inside(), *words], check=True, capture_output=True, text=True)

    def end(self) -> None:
        """It is gone, with what it held."""
        with self._holder:
            self._holder.kill()


def _entered(kinds: Sequence[str]) -> list[str]:
    return ["-U" if kind == "-Ur" else kind for kind in kinds]


class SmallDisk:
    """``with SmallDisk(folder, bytes) as disk``: commands behind ``disk.inside`` see it as ``folder``."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._place = folder, _Place(["-Ur", "-m"])
        self._place.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))

    @property
    def inside(self) -> list[str]:
        """The head of a command."""
        return self._place.inside()

    @property
    def seen(self) -> Path:
        """The folder as a process outside sees it."""
        return Path(f"/proc/{self._place.pid}/root{self._folder}")

    def grow(self, size: int) -> None:
        """To so many bytes."""
        self._place.run("mount", "-o", f"remount,size={size}", str(self._folder))

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.end()


class TwoHosts:
    """``with TwoHosts() as hosts``: ``hosts.inside[n]`` is the head of a command on host n, of ``ADDRESSES[n]``."""

    def __init__(self) -> None:
        first = _Place(["-Ur", "-n", "-u"])
        self._places = [first, _Place(["-n", "-u"], within=first)]
        first.run("ip", "link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1], "netns", f"{self._pid(1)}")
        for n, place in enumerate(self._places):
            place.run("hostname", HOSTS[n])
            place.run("ip", "link", "set", "lo", "up")
            place.run("ip", "addr", "add", f"{ADDRESSES[n]}/24", "dev", CABLE[n])
            place.run("ip", "link", "set", CABLE[n], "up")

    def _pid(self, host: int) -> int:
        return self._places[host].pid

    @property
    def inside(self) -> list[list[str]]:
        """The heads of commands."""
        return [place.inside() for place in self._places]

    def cut(self) -> None:
        """Nothing passes from now on."""
        self._places[0].run("ip", "link", "set", CABLE[0], "down")

    def heal(self) -> None:
        """All passes again."""
        self._places[0].run("ip", "link", "set", CABLE[0], "up")

    def __enter__(self) -> TwoHosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in reversed(self._places):
            place.end()
