"""The shards of one split as mapped memory: opened when first needed, checked before first use.

A mapped file that is shorter than expected kills the process on access, so its size is checked on the opened file, that
file is mapped, and the size is looked at again before each read.
"""

import contextlib
import mmap
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from isal import isal_zlib

from dnascale.data.cache import Lease
from dnascale.data.shards import TAR_HEADER, Dataset, LocalFile, block_offset
from dnascale.errors import DataError

#: What is compared with its checksum: each block before its first token is used, or nothing but the size of files.
Verify = Literal["checksum", "size"]

#: Files that a process may keep open besides shards.
_OTHER_FILES = 256


class Pieces(NamedTuple):
    """Windows in parts that lie in one block each. All arrays have shape [pieces]."""

    row: np.ndarray  # int64, the window
    column: np.ndarray  # int64, where the piece goes in it
    tokens: np.ndarray  # int64, how many
    address: np.ndarray  # int64, of the first
    separator: np.ndarray  # bool: the last token is an implied separator


class _Memory:
    """What numpy asks for to see memory at an address."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}


def memory(address: int, size: int) -> np.ndarray:
    """The memory of this process at an address, uint8 [size], to be read while what is mapped there stays mapped."""
    return np.asarray(_Memory(address, size))


class MappedShards:
    """Where the tokens of a split lie in memory. Not thread-safe; each process has its own."""

    def __init__(self, dataset: Dataset, split: str, verify: Verify = "checksum", readers: int = 1) -> None:
        """`readers` is how many there are of them for one purpose, which share the files that may be open."""
        self.dataset = dataset
        self.index = dataset.split(split).shards
        self.tokens = self.index.tokens  # int64 [shards]
        self.address = np.zeros(len(self.index), dtype=np.int64)  # of the mapped file's first byte
        # Least recently read first: what is mapped, and its lease.
        self._open: OrderedDict[int, tuple[mmap.mmap, Lease | LocalFile]] = OrderedDict()
        self._changed: dict[int, int] = {}  # when files were changed last, also of those that are closed
        # Shards that may be mapped at a time; the lease of a downloaded one is a second open file.
        self.capacity = max(1, _open_files() // (readers if dataset.remote is None else 2 * readers))
        self.verify = verify
        self._checked = np.full(len(self.index.blocks), verify == "size")
        self._unchecked = int((~self._checked).sum())
        self.width = dataset.dtype.itemsize  # bytes of a token
        self._table = None if dataset.translate is None else np.frombuffer(dataset.translate, dtype=np.uint8)
        # Place of each block in the stream of all shards; of layout `blocks` it is computed.
        self._begin: np.ndarray | None = None
        if dataset.layout == "records":
            lengths = self.index.blocks["tokens"].astype(np.int64) + 1
            self._begin = np.concatenate([[0], np.cumsum(lengths)])

    def __getstate__(self) -> dict[str, object]:
        """A copy for another process opens its own files."""
        return self.__dict__ | {"_open": OrderedDict(), "address": np.zeros_like(self.address)}

    def locate(self, shard: np.ndarray, start: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Where `length` tokens of each of n windows lie; `shard` and `start` are int64 [n].

        Returns the addresses of their first tokens, int64 [n], and which windows lie over several blocks, int64 [m]: only
        `read_apart` reads those right. Opens the shards and checks the blocks. Raises DataError for a missing or damaged
        shard, naming file, block and bytes.
        """
        if len(start) and (start.min() < 0 or (start > (self.tokens - length)[shard]).any()):
            raise ValueError("a window lies outside its shard")
        self._require_open(shard)
        if self._begin is None:
            size = self.dataset.block_tokens
            number = start // size
            address = self.address[shard] + start * self.width + (number + 1) * TAR_HEADER
            apart = np.flatnonzero(start - number * size > size - length)
        else:
            first, place = self._blocks(shard, start)
            address = self.address[shard] + self.index.blocks["offset"][first].astype(np.int64)
            address += place - self._begin[first]
            apart = np.flatnonzero(place + length >= self._begin[first + 1])  # the last place is a separator
        if self._unchecked:
            self._check(self._blocks(shard, start)[0], self._blocks(shard, start + length - 1)[0])
        return address, apart

    def pieces(self, shard: np.ndarray, start: np.ndarray, length: int) -> "Pieces":
        """Windows in parts that lie in one block each."""
        first, last = self._blocks(shard, start)[0], self._blocks(shard, start + length - 1)[0]
        count = last - first + 1
        row = np.repeat(np.arange(len(start)), count)
        block = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        shard, start = shard[row], start[row]
        if self._begin is None:
            size = self.dataset.block_tokens
            number = block - self.index.first_block[shard]
            begin, end, offset = number * size, (number + 1) * size, block_offset(number, size, self.width)
            separator = np.zeros(len(row), dtype=bool)
        else:
            base = self._begin[self.index.first_block[shard]]
            begin, end = self._begin[block] - base, self._begin[block + 1] - base
            offset = self.index.blocks["offset"][block].astype(np.int64)
            separator = end <= start + length
        low, high = np.maximum(start, begin), np.minimum(start + length, end)
        address = self.address[shard] + offset + (low - begin) * self.width
        return Pieces(row, low - start, high - low, address, separator)

    def _blocks(self, shard: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row of the block of each token, and the token's place in the stream of all shards: int64 [n] each."""
        if self._begin is None:
            return self.index.first_block[shard] + start // self.dataset.block_tokens, start
        place = self._begin[self.index.first_block[shard]] + start
        return np.searchsorted(self._begin, place, side="right") - 1, place

    def read_apart(self, shard: np.ndarray, start: np.ndarray, length: int) -> np.ndarray:
        """The tokens of windows that have been located, block by block: [n, length] of the data set's dtype."""
        out = np.empty((len(start), length), dtype=self.dataset.dtype)
        pieces = self.pieces(shard, start, length)
        low, size = int(pieces.address.min()), pieces.tokens * self.width
        data, line = memory(low, int((pieces.address + size).max()) - low), out.ravel().view(np.uint8)
        to, begin = (pieces.row * length + pieces.column) * self.width, pieces.address - low
        ends = to + size, begin + size
        for at, end, source, source_end in zip(
            to.tolist(), ends[0].tolist(), begin.tolist(), ends[1].tolist(), strict=True
        ):
            line[at:end] = data[source:source_end]
        out = self.translate(out)
        ended = pieces.separator
        out[pieces.row[ended], (pieces.column + pieces.tokens)[ended] - 1] = self.dataset.vocabulary.sep
        return out

    @property
    def translates(self) -> bool:
        """Whether the members hold something else than token ids."""
        return self._table is not None

    def translate(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes as they stand in the members -> token ids, uint8 of any shape."""
        return tokens if self._table is None else self._table[tokens]

    def stream(self, shard: int, most: int | None = None) -> np.ndarray:
        """The token stream of a shard, [tokens] of the data set's dtype, or its first `most` tokens."""
        length = int(self.tokens[shard]) if most is None else min(most, int(self.tokens[shard]))
        if not length:
            return np.empty(0, dtype=self.dataset.dtype)
        where = np.array([shard]), np.array([0])
        self.locate(*where, length)
        return self.read_apart(*where, length)[0]

    def keep(self, shards: Iterable[int]) -> None:
        """Closes all shards but these, so that a cache may drop their files."""
        for shard in set(self._open) - set(shards):
            self._close(shard)

    def _require_open(self, shard: np.ndarray) -> None:
        needed = np.flatnonzero(np.bincount(shard)).tolist() if len(shard) else []
        for one in needed:
            if one not in self._open:
                continue
            self._look_again(one)
            self._open.move_to_end(one)
        # Those that are open and needed are now the last, so that the first can go.
        for one in needed:
            if one not in self._open:
                while len(self._open) >= max(self.capacity, len(needed)):
                    self._close(next(iter(self._open)))
                self._map(one)

    def _look_again(self, shard: int) -> None:
        """What was changed since it was mapped is refused if it is shorter or longer, and else checked anew."""
        mapped, lease = self._open[shard]
        if mapped.size() != int(self.index.shards["bytes"][shard]):
            raise DataError(
                f"{lease.path} was changed while it was being read: it has another size than before. Restore it, and run "
                "the same command again."
            )
        try:
            now = os.stat(lease.path).st_mtime_ns
        except FileNotFoundError:  # what is mapped stays
            return
        self._note_change(shard, now)

    def _note_change(self, shard: int, now: int) -> None:
        """What a file holds that was changed since it was checked is checked again."""
        if self.verify == "checksum" and self._changed.get(shard, now) != now:
            rows = slice(*self.index.first_block[shard : shard + 2])
            self._unchecked += int(self._checked[rows].sum())
            self._checked[rows] = False
        self._changed[shard] = now

    def _map(self, shard: int) -> None:
        self._require_sound(shard)
        lease = self.dataset.lease(self.index.file(shard))
        try:
            with self._opened(lease.path, shard) as opened:
                size = int(self.index.shards["bytes"][shard])
                mapped = mmap.mmap(opened.fileno(), size, prot=mmap.PROT_READ)
                changed = os.fstat(opened.fileno()).st_mtime_ns
        except OSError as error:
            lease.close()
            raise DataError(f"{lease.path} cannot be mapped: {error.strerror}.") from None
        except BaseException:
            lease.close()
            raise
        self._open[shard] = mapped, lease
        if self.dataset.remote is not None:  # it may have come anew, and was compared with its SHA-256 then
            self._changed.pop(shard, None)
        self._note_change(shard, changed)
        self.address[shard] = np.frombuffer(mapped, dtype=np.uint8).__array_interface__["data"][0]

    def _require_sound(self, shard: int) -> None:
        """Raises DataError for an index that says what cannot be: addresses are computed from it."""
        rows, length = self.index.blocks_of(shard), int(self.index.shards["bytes"][shard])
        offset, tokens, size = (
            rows["offset"].astype(np.int64),
            rows["tokens"].astype(np.int64),
            self.dataset.block_tokens,
        )
        sound = len(rows) == int(self.index.shards["blocks"][shard])
        if self._begin is None:
            number = np.arange(len(rows))
            sound &= bool((offset == block_offset(number, size, self.width)).all() and (tokens[:-1] == size).all())
            sound &= bool((tokens[-1:] <= size).all()) and int(tokens.sum()) == int(self.tokens[shard])
        else:  # behind the last record one more byte may be looked at
            sound &= bool((offset[1:] >= (offset + tokens)[:-1]).all()) and bool((offset + tokens < length).all())
            sound &= int(tokens.sum()) + len(rows) == int(self.tokens[shard])
        if not sound or (offset < 0).any() or (offset + tokens * self.width > length).any():
            raise DataError(
                f"the index of {self.dataset.location} says what cannot be of {self.index.name(shard)}: it was not made by dnascale. "
                "Make the data set again."
            )

    def _opened(self, path: Path, shard: int) -> BinaryIO:
        """The opened file. Raises DataError when it is not there, or of another size than the shard."""
        size = int(self.index.shards["bytes"][shard])
        try:
            opened = path.open("rb")
        except FileNotFoundError:
            raise DataError(
                f"{path} is missing; {self.dataset.location}/dataset.json lists it. Copy it again."
            ) from None
        except OSError as error:
            raise DataError(f"{path} cannot be opened: {error.strerror}.") from None
        if (found := os.fstat(opened.fileno()).st_size) != size:
            opened.close()
            raise DataError(
                f"{path} has {found:,} bytes, dataset.json says {size:,}: the copy is incomplete or changed. Copy it again."
            )
        return opened

    def _close(self, shard: int) -> None:
        mapped, lease = self._open.pop(shard)
        self.address[shard] = 0
        mapped.close()
        lease.close()

    def _check(self, first: np.ndarray, last: np.ndarray) -> None:
        """Compares the blocks [first, last] of each window with their checksums, those that have not been."""
        for ahead in range(int((last - first).max(initial=0)) + 1):
            block = np.minimum(first + ahead, last)
            for one in np.unique(block[~self._checked[block]]).tolist():
                self._check_block(one)

    def _check_block(self, block: int) -> None:
        shard = int(np.searchsorted(self.index.first_block, block, side="right")) - 1
        begin, tokens, crc32 = self.index.blocks[block].tolist()
        end = begin + tokens * self.width
        if isal_zlib.crc32(memoryview(self._open[shard][0])[begin:end]) != crc32:
            mend = f"`dnascale data verify {self.dataset.location}` names all damage; copy or prepare it again."
            if (remote := self.dataset.remote) is not None:
                remote.reject(self.index.file(shard))
                mend = f"It is a copy, which the same command fetches again; `dnascale data verify {self.dataset.location}` looks at what is there."
            raise DataError(
                f"{self._path(shard)}: block {block - int(self.index.first_block[shard])} (bytes {begin:,} to "
                f"{end:,}) does not match its checksum: the file is damaged. {mend}"
            )
        self._unchecked -= not self._checked[block]
        self._checked[block] = True

    def check_size(self, shard: int) -> None:
        """Looks whether a local shard is there and as long as it should be. Raises DataError."""
        if self.dataset.remote is None:
            self._opened(self.dataset.folder / self.index.name(shard), shard).close()

    def check_all(self, shard: int) -> None:
        """Compares all blocks of a shard with their checksums, and looks at them no more. Raises DataError."""
        self._require_open(np.array([shard]))
        for block in range(*self.index.first_block[shard : shard + 2].tolist()):
            self._check_block(block)

    def _path(self, shard: int) -> str:
        return str(self._open[shard][1].path if shard in self._open else self.dataset.folder / self.index.name(shard))


def _open_files() -> int:
    """How many shards one of several readers may map at a time. Raises the process's own soft limit of open files as far as it may."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 15  # half of Linux' default limit of mappings
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has limits that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allowed = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
    return max(1, (allowed - _OTHER_FILES) // 8)
