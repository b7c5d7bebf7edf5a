"""A rank's part of a tensor as torch.distributed.checkpoint sees it: one chunk of the full tensor for each piece."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from runtime.state.shard_pieces import Part


class Entry:
    """One rank's part of a full tensor, in the words of torch.distributed.checkpoint: a chunk a piece."""

    def __init__(self, local: torch.Tensor, part: Part) -> None:
        self._local, self._part = local.detach(), part

    def copied(self, held: dict[str, torch.Tensor], key: str) -> Entry:
        """With a copy of the values in the memory of the CPU that ``held`` has under ``key``, or now gets."""
        local = self._local
        if key not in held or held[key].shape != local.shape or held[key].dtype != local.dtype:
            held[key] = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
        held[key].copy_(local)
        return Entry(held[key], self._part)

    def size(self) -> torch.Size:
        """The full shape."""
        return torch.Size(self._part.whole)

    def __create_write_items__(self, key: str, _: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self._local)
        rows = [TensorWriteData(chunk, properties, self.size()) for chunk in self.__create_chunk_list__()]
        shard = WriteItemType.SHARD
        return [WriteItem(MetadataIndex(key, row.chunk.offsets), shard, tensor_data=row) for row in rows]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(p.offset), torch.Size(p.size)) for p in self._part.pieces]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        piece = next(p for p in self._part.pieces if torch.Size(p.offset) == index.offset)
        return self._local[piece.local]


class SavePlanner(DefaultSavePlanner):
    """torch's own, which looks for chunks in tensor subclasses only."""

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class LoadPlanner(DefaultLoadPlanner):
    """torch's own, which looks for chunks in tensor subclasses only, and replaces what is no tensor by None."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index)
