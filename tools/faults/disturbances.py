"""What happens to runs: ranks are killed and stopped, checkpoints damaged, disks filled, ranks lost, a link is cut."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.checkpoint import step_folders
from runtime.ranks.launch import free_port
from tools.faults.disturbed_run import Outcome, Running, asked_to_leave, disturbed, undisturbed
from tools.faults.namespaces import ADDRESSES, CABLE, HOSTS, SmallDisk, TwoHosts
from tools.faults.trials import KEEP, RANKS, STEPS, Campaign

KILLED_SECONDS = 15.0  # of settling, stopping the others, and Python's end
HUNG_SECONDS = 30.0 + 8.0 + KILLED_SECONDS  # the longest limit at this patience, the answers, the same again
LEFT_SECONDS = 60.0
ROUNDING = 1e-3  # of losses and weights under other plans, after all steps


def kill(campaign: Campaign) -> None:
    """SIGKILL of any rank at any moment."""
    _signalled(campaign, signal.SIGKILL, "killed by SIGKILL", KILLED_SECONDS)


def stop(campaign: Campaign) -> None:
    """SIGSTOP of any rank at any moment."""
    _signalled(campaign, signal.SIGSTOP, "hung: .*: it does not answer, stopped by a signal", HUNG_SECONDS)


def _signalled(campaign: Campaign, number: signal.Signals, words: str, limit: float) -> None:
    """A rank drawn gets it at a moment drawn; the run says ``words`` of that rank, and goes on afterwards."""
    what, folder = campaign.fresh(number.name)
    rank, after = campaign.draw.randrange(RANKS), campaign.draw.uniform(0.0, campaign.seconds)
    outcome = disturbed(campaign.words(folder), after, rank, number)
    said = f"rank {rank} failed: {words}"
    campaign.expect(number.name, f"{what} of rank {rank} after {after:.1f} s", outcome, said, limit)
    campaign.resume(what, folder)


def leave(campaign: Campaign) -> None:
    """SIGTERM of the command at any moment."""
    what, folder = campaign.fresh("SIGTERM")
    after = campaign.draw.uniform(0.0, campaign.seconds)
    outcome = asked_to_leave(campaign.words(folder), after)
    if outcome.status != -signal.SIGTERM:  # else it had not begun: Python itself was starting
        campaign.expect("SIGTERM", f"{what} after {after:.1f} s", outcome, "stopped by SIGTERM as asked", LEFT_SECONDS)
    campaign.resume(what, folder)


def damage(campaign: Campaign) -> None:
    """A file of the newest checkpoint torn or with one bit turned, after a kill."""
    what, folder = campaign.fresh("damaged checkpoint")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(campaign.folder / "half", folder)
    newest = step_folders.found(folder)[0]
    path = campaign.draw.choice(sorted(newest.iterdir()))
    content = bytearray(path.read_bytes())
    if campaign.draw.random() < 0.5:
        del content[campaign.draw.randrange(len(content)) :]
    else:
        content[campaign.draw.randrange(len(content))] ^= 1 << campaign.draw.randrange(8)
    path.write_bytes(content)
    done = campaign.resume(what, folder)
    said = re.sub(r"\s+", " ", done.said)
    if f"{newest.name} is not a whole checkpoint ({path.name}" not in said:
        campaign.miss(what, f"nothing was said of {path.name}", done)


def half(campaign: Campaign) -> None:
    """A run that was killed after half its steps, once, for what is done to checkpoints."""
    folder = campaign.folder / "half"
    run = Running(campaign.words(folder))
    reached = step_folders.named(folder, STEPS // 2)
    run.wait_until(lambda _: reached.is_dir())
    for pid in run.ranks().values():
        subprocess.run(["kill", "-9", str(pid)], check=False)
    run.end()


def fill(campaign: Campaign) -> None:
    """A disk that holds half a checkpoint more than are kept; it says so, and goes on once there is room."""
    what, folder = campaign.fresh("full disk")
    each = sum(path.stat().st_size for path in step_folders.found(campaign.folder / "whole")[0].iterdir())
    with SmallDisk(folder, int((KEEP + 0.5) * each)) as disk:
        done = undisturbed(campaign.words(folder), disk.inside)
        if done.status == 0 or "can't be written: No space left on device" not in done.said:
            campaign.miss(what, "nothing was said of the disk", done)
        left = sorted(path for path in disk.seen.iterdir() if path.is_dir())
        whole = sorted(step_folders.found(disk.seen))
        if left != whole or not whole:
            campaign.miss(what, f"{', '.join(path.name for path in left)} were left", done)
        disk.grow(10 * KEEP * each)
        campaign.resume(what, folder, run=lambda words: undisturbed(words, disk.inside), seen=disk.seen)


NUMBERS = (4, 3, 2, 4, 3, 2)  # of ranks, one after the other


def reshape(campaign: Campaign) -> None:
    """A rank is killed, and the run goes on with another number of them, planned anew; five times."""
    what, folder = campaign.fresh("other numbers of ranks")
    for n, ranks in enumerate(NUMBERS[:-1]):
        run = Running([*campaign.words(folder), "--elastic", "--ranks", str(ranks)])
        reached = step_folders.named(folder, (n + 1) * STEPS // len(NUMBERS))
        rank = campaign.draw.randrange(ranks)
        if not run.wait_until(lambda run, at=reached, rank=rank: at.is_dir() and rank in run.ranks()):
            campaign.miss(what, f"it ended with {ranks} ranks", run.end())
            return
        subprocess.run(["kill", "-9", str(run.ranks()[rank])], check=False)
        outcome = run.end()
        if n and f"{ranks} ranks came, not the plan's {RANKS}" not in outcome.said and ranks != RANKS:
            campaign.miss(what, f"nothing was said of {ranks} ranks", outcome)
        if outcome.status and f"rank {rank} failed: killed by SIGKILL" not in outcome.said:
            campaign.miss(what, f"nothing was said of rank {rank}", outcome)
    campaign.resume(what, folder, "--elastic", "--ranks", str(NUMBERS[-1]), rounding=ROUNDING)


def cut(campaign: Campaign) -> None:
    """The link between two hosts is cut for a moment, which nothing comes of; then until the ranks have given up."""
    what, folder = campaign.fresh("cut link")
    with TwoHosts() as hosts:
        runs = _started(hosts, campaign.words(folder))
        _reach(runs, folder, STEPS // 4)
        hosts.cut()
        runs[0].wait_until(_after(2.0))
        hosts.heal()
        _reach(runs, folder, STEPS // 2)
        if any(run.has_ended() for run in runs):
            campaign.miss(what, "it did not outlast a moment", _together(runs))
        hosts.cut()
        since = time.monotonic()
        ends = [run.end(since) for run in runs]
        for rank, end in enumerate(ends):
            words = f"rank 2 does not answer, nor does rank 3, no rank of {HOSTS[1]}: look at the machine"
            if rank >= RANKS // 2:
                words = f"the store at {ADDRESSES[0]}, in rank 0's process, does not answer"
            campaign.expect("cut link", f"{what}: rank {rank}", end, words, HUNG_SECONDS)
            if end.status == 0:
                campaign.miss(what, f"rank {rank} ended as if nothing were", end)
        hosts.heal()
        campaign.resume(what, folder, run=lambda words: _together(_started(hosts, words)))


def _started(hosts: TwoHosts, words: Sequence[str]) -> list[Running]:
    """A rank each, as torchrun would start them, half of them on each host."""
    port, each, runs = free_port(), RANKS // 2, list[Running]()
    for rank in range(RANKS):
        host, local = divmod(rank, each)
        place = {
            "RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": each, "OMP_NUM_THREADS": 1,
            "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": CABLE[host],
        }  # fmt: skip
        runs.append(Running(words, hosts.inside[host], {name: str(value) for name, value in place.items()}))
    return runs


def _reach(runs: Sequence[Running], folder: Path, step: int) -> None:
    reached = step_folders.named(folder, step)
    runs[0].wait_until(lambda _: reached.is_dir())


def _after(seconds: float) -> Callable[[Running], bool]:
    end = time.monotonic() + seconds
    return lambda _: time.monotonic() >= end


def _together(runs: Sequence[Running]) -> Outcome:
    ends = [run.end() for run in runs]
    return Outcome(max(abs(end.status) for end in ends), "".join(end.said for end in ends), None)
