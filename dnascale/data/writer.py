"""Writing shards: a token stream cut into blocks, byte-identical for the same tokens wherever it runs."""

import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from dnascale.data.digest import Sha256
from dnascale.data.shards import BLOCK_ROW, BLOCK_TOKENS, SHARD_NAME, TAR_HEADER, Index, Shard

SHARD_BLOCKS = 128


class TarShard:
    """One shard of layout `blocks` that is being written at `path`: number `number` of its split."""

    def __init__(self, path: Path, name: str, number: int) -> None:
        self.name, self.number = name, number
        self._file: Any = path.open("xb", buffering=0)
        self._blocks: list[tuple[int, int, int]] = []  # offset, tokens, crc32
        self._sha256, self._bytes = Sha256(), 0

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    def write(self, tokens: np.ndarray) -> None:
        """Appends one block (tokens of whatever dtype), which must not change until `finish`. Only the last may be shorter."""
        header = tarfile.TarInfo(f"{self.number:06d}-{len(self._blocks):06d}.bin")
        payload = np.ascontiguousarray(tokens).view(np.uint8)
        header.size = len(payload)
        self._put(header.tobuf(tarfile.USTAR_FORMAT))
        self._blocks.append((self._bytes, len(tokens), isal_zlib.crc32(payload)))
        self._put(payload.data)
        self._put(bytes(-len(payload) % TAR_HEADER))

    def sync(self) -> None:
        """Brings to the disk what is written so far, so that less is left for the end."""
        os.fsync(self._file.fileno())

    def finish(self, records: int = 0) -> Shard:
        """Ends the tar, and closes the file."""
        self._put(bytes(2 * TAR_HEADER))  # two zero blocks end a tar archive
        self.close()
        blocks = np.array(self._blocks, dtype=BLOCK_ROW)
        return Shard(self.name, self._bytes, self._sha256.hexdigest(), int(blocks["tokens"].sum()), records, blocks)

    def close(self) -> None:
        """Lets go of the file, finished or not."""
        self._file.close()

    def _put(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:  # an unbuffered write may take less
            left = left[self._file.write(left) :]
        self._sha256.update(data)
        self._bytes += len(data)


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
        self._shard: TarShard | None = None  # the open one
        self._block = np.empty(self.block_tokens, dtype=self.dtype)
        self._filled = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of an unfinished shard; `close` is what finishes it."""
        if self._shard:
            self._shard.close()

    @property
    def names(self) -> str:
        """Pattern of the shards' names."""
        return f"{self.split}/{SHARD_NAME}"

    @property
    def position(self) -> tuple[int, int]:
        """(shard, token) where the next token goes."""
        return len(self.shards), (self._shard.blocks if self._shard else 0) * self.block_tokens + self._filled

    @property
    def room(self) -> int:
        """Tokens that the current shard still takes."""
        return self.block_tokens * self.shard_blocks - self.position[1]

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens ([n] of `dtype`, n <= room) to the current shard, and closes it when full."""
        done = 0
        while done < len(tokens):
            if not self._filled and len(tokens) - done >= self.block_tokens:
                self._write_block(tokens[done : done + self.block_tokens])
                done += self.block_tokens
                continue
            piece = tokens[done : done + self.block_tokens - self._filled]
            self._block[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            done += len(piece)
            if self._filled == self.block_tokens:
                self._filled = 0
                self._write_block(self._block)
        if self._shard and not self.room:
            self._close_shard()

    def close(self) -> list[Shard]:
        """Writes what is pending and returns the shards (`records` is filled in by the caller)."""
        if self._filled:
            last, self._filled = self._block[: self._filled], 0
            self._write_block(last)
        if self._shard:
            self._close_shard()
        return self.shards

    def index(self) -> Index:
        """`close`, as an index."""
        return Index.of(self.close(), self.names)

    def _write_block(self, tokens: np.ndarray) -> None:
        if self._shard is None:
            name = self.names % len(self.shards)
            self._shard = TarShard(self.folder / name, name, len(self.shards))
        self._shard.write(tokens.astype(self.dtype))  # a copy: `_block` is filled again

    def _close_shard(self) -> None:
        assert self._shard is not None
        self.shards.append(self._shard.finish())
        self._shard = None
