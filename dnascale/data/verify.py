"""Comparing every file of a data set with its digests and counts, for `dnascale data verify`.

Files are read and not mapped: where a mapped page that fails kills the process, a read that fails is one more fault.
"""

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise, product
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple

import numpy as np
from isal import isal_zlib

from dnascale.data.shards import TAR_HEADER, Dataset, Split, block_offset
from dnascale.errors import DnascaleError
from dnascale.vocab import SOFT_MASK_BIT

#: Bytes read at a time, and places of a wrong byte tried at a time.
_PIECE = 1 << 20
#: Ways to put a file right that are compared with its SHA-256: one is right, others fit the checksums by chance.
_WAYS = 16


class _Tally(NamedTuple):
    """What the tokens of an undamaged shard add up to."""

    separators: int
    first: int  # bases before the first separator
    longest: int  # most bases without a separator
    last: int  # bases after the last separator
    soft_masked: int


def verify(dataset: Dataset, progress: Callable[[int], None] = lambda _bytes: None) -> list[str]:
    """A sentence for each fault of each file; none means that every byte is right, and every count of tokens and records.

    `progress` is told of the bytes of shards as they are read, by one thread at a time. `dataset.json` and the index were
    compared with their digests when the data set was loaded. Memory: 4 MiB a thread, and 50 bytes a record of its shard.
    """
    lock = Lock()

    def advance(count: int) -> None:
        with lock:
            progress(count)

    def check(job: tuple[Split, int]) -> tuple[list[str], _Tally | None]:
        return _ShardCheck(dataset, *job, advance).run()

    faults: list[str] = []
    with ThreadPoolExecutor() as pool:
        results = pool.map(check, [(split, n) for split in dataset.splits.values() for n in range(len(split.shards))])
        for name, split in dataset.splits.items():
            tallies = []
            for of_shard, tally in islice(results, len(split.shards)):
                faults += of_shard
                tallies.append(tally)
            where = f"{dataset.location}, split '{name}'"
            faults += (f"{where}: {fault}." for fault in _split_faults(split, tallies, dataset.soft_mask_bit))
    return faults


def one_byte_errors(syndrome: int, length: int) -> list[tuple[int, int]]:
    """Where one wrong byte of `length` may be, if it changed their CRC-32 by XOR `syndrome`: [(place, XOR of the byte)].

    CRC-32 is linear: a byte that is wrong by e, with n bytes behind it, changes the checksum by e put through n + 1 steps
    of the shift register. So the syndrome is stepped back; where it is less than 256 after n + 1 steps, it is an e.
    """
    step, states = _STEP_BACK, _apply(_STEP_BACK, np.array([syndrome], dtype=np.uint32))
    while len(states) < min(length, _PIECE):  # the syndrome after 1 to n steps, and then n steps at once
        states, step = np.concatenate([states, _apply(step, states)]), _apply(step, step)
    errors: list[tuple[int, int]] = []
    for done in range(0, length, len(states)):
        behind = np.flatnonzero(states[: length - done] < 256)
        errors += zip((length - 1 - done - behind).tolist(), states[behind].tolist(), strict=True)
        states = _apply(step, states)
    return errors


def _apply(step: np.ndarray, states: np.ndarray) -> np.ndarray:
    """A linear map of 32-bit words, given as what each value of each of their bytes becomes (uint32 [4, 256])."""
    out: np.ndarray = step[0][states & 255] ^ step[1][states >> 8 & 255]
    return out ^ step[2][states >> 16 & 255] ^ step[3][states >> 24]


def _step_back() -> np.ndarray:
    """The inverse of what a byte 0 does to the register of CRC-32, as a linear map."""
    value = np.arange(256, dtype=np.uint32)
    forward = np.array([isal_zlib.crc32(bytes([v])) ^ isal_zlib.crc32(b"\0") for v in range(256)], dtype=np.uint32)
    last = np.empty_like(value)
    last[forward >> 24] = forward << 8 ^ value
    return np.stack([value << 8, value << 16, value << 24, last])


_STEP_BACK = _step_back()


def _split_faults(split: Split, tallies: Sequence[_Tally | None], soft_mask_bit: bool) -> Iterator[str]:
    """What is wrong with the counts of a split. Where a shard is damaged, only what needs no tokens is compared."""
    index = split.shards
    tokens, blocks = int(index.tokens.sum()), int(index.first_block[-1])
    if len(index.blocks) != blocks:
        yield f"blocks.npy has {len(index.blocks):,} rows, its shards have {blocks:,} blocks"
    if split.tokens != tokens:
        yield f"dataset.json says {split.tokens:,} tokens, its shards have {tokens:,}"
    known = [tally for tally in tallies if tally]
    if len(known) < len(tallies):
        if split.bases + split.records != tokens:
            yield f"{split.bases:,} bases and {split.records:,} separators are not the {tokens:,} tokens of its shards"
        return
    separators = longest = unended = 0  # a record may run over the end of its shard
    for tally in known:
        separators += tally.separators
        longest = max(longest, unended + tally.first, tally.longest)
        unended = tally.last if tally.separators else unended + tally.first
    counts = [
        ("records", split.records, separators),
        ("bases", split.bases, tokens - separators),
        ("bases in its longest record", split.longest_record, longest),
    ]
    if soft_mask_bit:
        counts.append(("soft-masked bases", split.soft_masked, sum(tally.soft_masked for tally in known)))
    for what, said, found in counts:
        if said != found:
            yield f"dataset.json says {said:,} {what}, its shards have {found:,}"


class _ShardCheck:
    """One shard, and the file of its records."""

    def __init__(self, dataset: Dataset, split: Split, number: int, advance: Callable[[int], None]) -> None:
        self.dataset = dataset
        self.number = number
        self.file = split.shards.file(number)
        self.shard = split.shards[number]
        self.advance = advance
        self.path = dataset.folder / self.shard.name
        self.tokens: list[int] = self.shard.blocks["tokens"].tolist()
        self.begin: list[int] = self.shard.blocks["offset"].tolist()
        self.end = [begin + tokens for begin, tokens in zip(self.begin, self.tokens, strict=True)]
        # Found by reading:
        self.size = 0
        self.sha256 = ""  # of no more bytes than the file should have
        self.crc32 = [0] * len(self.tokens)
        self.separators: list[np.ndarray] = []  # int64, their places among the stored tokens
        self.largest_id = self.soft_masked = 0

    def run(self) -> tuple[list[str], _Tally | None]:
        """All faults; and the sums over the tokens, if these are what was written."""
        faults: list[str] = []
        lengths = None
        try:
            lease = self.dataset.lease(self.file)
            self.path = lease.path
            try:
                faults += self._misplaced()
                self._read()
                faults += self._wrong_size()
                if self.sha256 != self.shard.sha256:
                    faults += self._damage()
                elif self.tokens:
                    lengths = self._lengths()
                    faults += self._wrong_counts(lengths)
            finally:
                lease.close()
        except DnascaleError as error:
            faults.append(str(error))
        except FileNotFoundError:
            faults.append(f"{self.path} is missing.")
        except OSError as error:
            faults.append(f"{self.path} cannot be read: {error.strerror or error}.")
        faults += self._wrong_records_file(lengths)
        if lengths is None:
            return faults, None
        ends = int(lengths[0]), int(lengths.max()), int(lengths[-1])
        return faults, _Tally(len(lengths) - 1, *ends, self.soft_masked)

    def _misplaced(self) -> Iterator[str]:
        """Whether the index says impossible things; what it says of blocks is then forgotten."""
        ...

    def _read(self) -> None:
        """Reads the file once: its size, its digests, and what its tokens are.  Raises OSError."""
        sha256 = hashlib.sha256()
        buffer = np.empty(min(_PIECE, self.shard.bytes), dtype=np.uint8)
        at = block = stored = 0
        with self.path.open("rb", buffering=0) as file:
            self.size = os.fstat(file.fileno()).st_size
            while count := file.readinto(buffer[: self.shard.bytes - at]):
                sha256.update(buffer[:count])
                while block < len(self.begin) and self.begin[block] < at + count:
                    part = buffer[max(self.begin[block] - at, 0) : min(self.end[block] - at, count)]
                    self.crc32[block] = isal_zlib.crc32(part, self.crc32[block])
                    self._look(part, stored)
                    stored += len(part)
                    if self.end[block] > at + count:
                        break
                    block += 1
                at += count
                self.advance(count)
        self.sha256 = sha256.hexdigest()
