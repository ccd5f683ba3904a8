"""Writing shards: a token stream cut into blocks, byte-identical for the same tokens wherever it runs."""

import hashlib
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from dnascale.data.shards import BLOCK_ROW, BLOCK_TOKENS, SHARD_NAME, TAR_HEADER, Index, Shard

SHARD_BLOCKS = 128


@dataclass
class ShardWriter:
    """Writes one split's token stream as shards of layout `blocks`."""

    folder: Path
    split: str
    block_tokens: int = BLOCK_TOKENS
    shard_blocks: int = SHARD_BLOCKS
    dtype: Any = np.uint8  # of the tokens
    shards: list[Shard] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.block_tokens % TAR_HEADER:
            raise ValueError(
                f"block_tokens={self.block_tokens} must be a multiple of {TAR_HEADER}, so that no padding is needed"
            )
        (self.folder / self.split).mkdir(parents=True, exist_ok=True)
        self._file: Any = None
        self._blocks: list[tuple[int, int, int]] = []  # of the open shard: offset, tokens, crc32
        self._block = np.empty(self.block_tokens, dtype=self.dtype)
        self._filled = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of an unfinished shard; `close` is what finishes it."""
        if self._file:
            self._file.close()

    @property
    def names(self) -> str:
        """Pattern of the shards' names."""
        return f"{self.split}/{SHARD_NAME}"

    @property
    def position(self) -> tuple[int, int]:
        """(shard, token) where the next token goes."""
        return len(self.shards), len(self._blocks) * self.block_tokens + self._filled

    @property
    def room(self) -> int:
        """Tokens that the current shard still takes."""
        return self.block_tokens * self.shard_blocks - self.position[1]

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens ([n] of `dtype`, n <= room) to the current shard, and closes it when full."""
        done = 0
        while done < len(tokens):
            if not self._filled and len(tokens) - done >= self.block_tokens:
                self._write_block(tokens[done : done + self.block_tokens])  # a whole block is not copied
                done += self.block_tokens
                continue
            piece = tokens[done : done + self.block_tokens - self._filled]
            self._block[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            done += len(piece)
            if self._filled == self.block_tokens:
                self._filled = 0
                self._write_block(self._block)
        if self._file and not self.room:
            self._close_shard()

    def close(self) -> list[Shard]:
        """Writes what is pending and returns the shards (`records` is filled in by the caller)."""
        if self._filled:
            last, self._filled = self._block[: self._filled], 0
            self._write_block(last)
        if self._file:
            self._close_shard()
        return self.shards

    def index(self) -> Index:
        """`close`, as an index."""
        return Index.of(self.close(), self.names)

    def _write_block(self, tokens: np.ndarray) -> None:
        if self._file is None:
            self._file = (self.folder / (self.names % len(self.shards))).open("xb", buffering=0)
            self._sha256, self._bytes = hashlib.sha256(), 0
        header = tarfile.TarInfo(f"{len(self.shards):06d}-{len(self._blocks):06d}.bin")
        payload = np.ascontiguousarray(tokens, dtype=self.dtype).view(np.uint8)
        header.size = len(payload)
        self._put(header.tobuf(tarfile.USTAR_FORMAT))
        self._blocks.append((self._bytes, len(tokens), isal_zlib.crc32(payload)))
        self._put(payload.data)
        self._put(bytes(-len(payload) % TAR_HEADER))

    def _put(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:  # an unbuffered write may take less
            left = left[self._file.write(left) :]
        self._sha256.update(data)
        self._bytes += len(data)

    def _close_shard(self) -> None:
        self._put(bytes(2 * TAR_HEADER))  # two zero blocks end a tar archive
        self._file.close()
        self._file = None
        blocks = np.array(self._blocks, dtype=BLOCK_ROW)
        self.shards.append(
            Shard(
                self.names % len(self.shards),
                self._bytes,
                self._sha256.hexdigest(),
                int(blocks["tokens"].sum()),
                0,
                blocks,
            )
        )
        self._blocks = []
