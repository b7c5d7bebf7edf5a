"""A checkpoint read so that nothing in it can run.

torch writes ``.metadata`` as a pickle, in which names stand for what is called: here none are known but those that
describe tensors. Tensors' bytes are read by torch's own reader, which takes weights alone.
"""

from __future__ import annotations

import pathlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

METADATA = ".metadata"
_DESCRIBING = {
    metadata: (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    filesystem: ("_StorageInfo",),
}  # fmt: skip
_KNOWN: dict[tuple[str, str], Any] = {
    **{(module.__name__, name): getattr(module, name) for module, names in _DESCRIBING.items() for name in names},
    **{("torch", name): dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: {"torch.strided": torch.strided}[name],
    **dict.fromkeys((("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")), pathlib.PurePosixPath),
}


class _Describing(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which describes no tensor")
        return _KNOWN[module, name]


class CheckpointReader(FileSystemReader):
    """torch's, but for how ``.metadata`` is read."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Of tensors in files of the folder; raises UnpicklingError for anything else, OSError where there is none."""
        with (Path(self.path) / METADATA).open("rb") as file:
            try:
                found = _Describing(file).load()
                _check(found)
            except pickle.UnpicklingError:
                raise
            except Exception as error:  # of a damaged file any step may fail, in any way
                raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found


def _check(found: Metadata) -> None:
    for key, row in found.state_dict_metadata.items():
        if not isinstance(row, TensorStorageMetadata):
            raise pickle.UnpicklingError(f"{key} is no tensor")
    for info in found.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise pickle.UnpicklingError(f"{info.relative_path} is no file of its folder")
        if info.transform_descriptors:
            raise pickle.UnpicklingError(f"{info.relative_path} is encoded: {info.transform_descriptors}")
