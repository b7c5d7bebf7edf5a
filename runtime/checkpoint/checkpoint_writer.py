"""One checkpoint as torch writes it, with the sum of every file, and published when all ranks have written theirs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from runtime.checkpoint import step_folders
from runtime.checkpoint.checkpoint_reader import METADATA
from runtime.checkpoint.dcp_chunks import Entry
from runtime.checkpoint.record import File, Record, sha256, write_record


@dataclass(frozen=True)
class Summed(WriteResult):
    """A tensor's place in a file, and that file."""

    file: File


class CheckpointWriter(FileSystemWriter):
    """torch's own, into ``step-N.writing``, which becomes ``step-N`` when it is whole.

    ``copies`` is memory for a copy of what is saved, filled anew by each save beside training. ``keep``: how many
    checkpoints stay, None for all.
    """

    def __init__(self, target: Path, record: Record, keep: int | None, copies: dict[str, torch.Tensor]) -> None:
        super().__init__(step_folders.writing(target), per_thread_copy_ahead=0)  # threads use no GPU
        self.target, self._record, self._keep, self._copies = target, record, keep, copies

    def stage(self, state_dict: dict[str, Entry]) -> dict[str, Entry]:
        """Copies in the memory of the CPU, which training may no longer change."""
        return {key: entry.copied(self._copies, key) for key, entry in state_dict.items()}

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the first rank, before any file is written: what an earlier attempt left goes."""
        for left in Path(self.path).iterdir():
            left.unlink()
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """On every rank: its files, each with its sum."""
        try:
            written = super().write_data(plan, planner).wait()
        except RuntimeError as error:  # torch's writer of zip files hides the disk's own word
            raise _of_the_disk(error) or error from error
        names = {row.storage_data.relative_path for row in written}
        files = {name: _file(Path(self.path) / name) for name in names}
        rows = [Summed(r.index, r.size_in_bytes, r.storage_data, files[r.storage_data.relative_path]) for r in written]
        done: Future[list[WriteResult]] = Future()
        done.set_result(list[WriteResult](rows))
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first rank, when all have written."""
        super().finish(metadata, results)
        folder = Path(self.path)
        rows = (row for rank in results for row in rank if isinstance(row, Summed))
        files = {row.storage_data.relative_path: row.file for row in rows}
        for name, file in files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != file.bytes:
                raise FileNotFoundError(f"rank 0 does not see {name}: all nodes have to share the folder")
        files[METADATA] = _file(folder / METADATA)
        write_record(folder, replace(self._record, files=dict(sorted(files.items()))))
        step_folders.publish(self.target)
        if self._keep is not None:
            step_folders.prune(self.target, self._keep)

    def abandon(self) -> None:
        """Remove what was half written."""
        shutil.rmtree(self.path, ignore_errors=True)


def _of_the_disk(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _file(path: Path) -> File:
    return File(path.stat().st_size, sha256(path))
