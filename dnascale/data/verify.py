"""Comparing every file of a data set with its digests and counts, for `dnascale data verify`.

Files are read and not mapped: where a mapped page that fails kills the process, a read that fails is one more fault.
"""

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import NamedTuple

import numpy as np
from isal import isal_zlib

from dnascale.data.remote import default_cache, is_remote
from dnascale.data.shards import TAR_HEADER, Dataset, Split, block_offset, load_dataset
from dnascale.errors import DnascaleError
from dnascale.files import explained

#: Bytes read at a time, and places of a wrong byte tried at a time.
_PIECE = 1 << 20
#: Shards read at a time.
_THREADS = min(32, (os.cpu_count() or 1) + 4)
#: Ways to put a file right that are compared with its SHA-256: one is right, others fit the checksums by chance.
_WAYS = 64


class _Tally(NamedTuple):
    """What the tokens of an undamaged shard add up to."""

    separators: int
    bases: int
    first: int  # bases before the first separator
    longest: int  # most bases without a separator
    last: int  # bases after the last separator
    soft_masked: int


@contextmanager
def opened_to_verify(location: str) -> Iterator[Dataset]:
    """A data set as it is now: of a URL no copies that a cache has, but new ones, in a folder of their own that goes afterwards.

    That folder, in the user's cache, holds the shards that are looked at at a time and no more. Raises as `load_dataset` does.
    """
    if not is_remote(location):
        yield load_dataset(location)
        return
    near = default_cache()
    try:
        near.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix="dnascale-verify-", dir=near, ignore_cleanup_errors=True)
    except OSError as error:
        raise explained(error, near) from error
    with folder as cache:
        dataset = load_dataset(location, Path(cache))
        shards = [int(size) for split in dataset.splits.values() for size in split.shards.shards["bytes"]]
        index = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
        # With room for one more, as a thread may ask for the next shard before another has let go of its own.
        yield load_dataset(location, Path(cache), index + (_THREADS + 1) * max(shards, default=0))


def verify(dataset: Dataset, progress: Callable[[int], None] = lambda _bytes: None) -> list[str]:
    """A sentence for each fault of each file; none means that every byte is right, and every number of tokens and records.

    `progress` is told of the bytes of shards as they are read, by one thread at a time. `dataset.json` and the index were
    compared with their digests when the data set was loaded. Memory: 4 MiB a thread and some 50 bytes a record of its
    shard; 20 MiB while a wrong byte is looked for.
    """
    lock = Lock()
    wanted = True

    def advance(count: int) -> None:
        if not wanted:
            raise InterruptedError
        with lock:
            progress(count)

    def check(job: tuple[Split, int]) -> tuple[list[str], _Tally | None]:
        return _ShardCheck(dataset, *job, advance).run()

    faults: list[str] = []
    jobs = [(split, number) for split in dataset.splits.values() for number in range(len(split.shards))]
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            results = pool.map(check, jobs)
            for name, split in dataset.splits.items():
                tallies = []
                for of_shard, tally in islice(results, len(split.shards)):
                    faults += of_shard
                    tallies.append(tally)
                where = f"{dataset.location}, split '{name}'"
                faults += (f"{where}: {fault}." for fault in _wrong_sums(dataset, split, tallies))
        finally:
            wanted = False  # threads that are still at it, after an interrupt, stop
    return faults


def _wrong_sums(dataset: Dataset, split: Split, tallies: Sequence[_Tally | None]) -> Iterator[str]:
    """What is wrong with the counts of a split. Where a shard is damaged, only what needs no tokens is compared."""
    tokens, blocks = int(split.shards.tokens.sum()), int(split.shards.first_block[-1])
    if len(split.shards.blocks) != blocks:
        yield f"blocks.npy has {len(split.shards.blocks):,} rows, its shards have {blocks:,} blocks"
    if split.tokens != tokens:
        yield f"dataset.json says {split.tokens:,} tokens, its shards have {tokens:,}"
    known = [tally for tally in tallies if tally]
    one_base_a_token = dataset.vocabulary.one_base_a_token
    if len(known) < len(tallies):
        if one_base_a_token and split.bases + split.records != tokens:
            yield f"{split.bases:,} bases and {split.records:,} separators are not the {tokens:,} tokens of its shards"
        return
    separators = longest = unended = 0  # a record may run over the end of its shard
    for tally in known:
        separators += tally.separators
        longest = max(longest, unended + tally.first, tally.longest)
        unended = tally.last if tally.separators else unended + tally.first
    counts = [
        ("records", split.records, separators),
        ("bases", split.bases, tokens - separators if one_base_a_token else sum(tally.bases for tally in known)),
        ("bases in its longest record", split.longest_record, longest),
    ]
    if dataset.soft_mask_bit and one_base_a_token:
        counts.append(("soft-masked bases", split.soft_masked, sum(tally.soft_masked for tally in known)))
    for what, said, found in counts:
        if said != found:
            yield f"dataset.json says {said:,} {what}, its shards have {found:,}"


class _ShardCheck:
    """One shard, and the file beside it that names its records."""

    def __init__(self, dataset: Dataset, split: Split, number: int, advance: Callable[[int], None]) -> None:
        self.dataset = dataset
        self.number = number
        self.file = split.shards.file(number)
        self.shard = split.shards[number]
        self.advance = advance
        self.path = dataset.folder / self.shard.name
        self.stored = dataset.layout == "blocks"  # whether separators are
        ids = set(dataset.translate or ())  # if there is nothing to notice in them, the members are not looked at
        self.plain = bool(ids) and max(ids) < len(dataset.vocabulary) and dataset.vocabulary.sep not in ids
        self.width = dataset.dtype.itemsize  # bytes of a token
        self.counts_bases = not dataset.vocabulary.one_base_a_token
        # int64 [blocks], bytes in the file:
        self.begin = self.shard.blocks["offset"].astype(np.int64)
        self.end = self.begin + self.shard.blocks["tokens"].astype(np.int64) * self.width
        # What the file turns out to be:
        self.size = 0
        self.sha256 = ""  # of no more bytes than it should have
        self.crc32 = np.zeros(len(self.begin), dtype=np.uint32)
        self.separators: list[np.ndarray] = []  # int64, places among the stored tokens
        self.bases_before: list[np.ndarray] = []  # int64, for each separator, of the whole shard
        self.bases = 0
        self._half = b""  # of a token whose other byte is still to come
        self.largest_id = self.soft_masked = 0

    def run(self) -> tuple[list[str], _Tally | None]:
        """All faults; and the sums over the tokens, if these are right."""
        faults: list[str] = []
        lengths = None
        try:
            lease = self.dataset.lease(self.file)
            self.path = lease.path
            try:
                faults += self._wrong_index()
                self._read()
                faults += self._wrong_size()
                if self.sha256 != self.shard.sha256:
                    faults += (f"{self.path}: {fault}." for fault in self._damage())
                elif len(self.begin) == len(self.shard.blocks):
                    lengths = self._lengths()
                    faults += (f"{self.path}: {fault}." for fault in self._wrong_counts(lengths))
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
        bases = self._base_lengths(lengths)
        first, longest, last = int(bases[0]), int(bases.max()), int(bases[-1])
        return faults, _Tally(len(lengths) - 1, int(bases.sum()), first, longest, last, self.soft_masked)

    def _wrong_index(self) -> Iterator[str]:
        """Whether the index says what cannot be. Blocks at impossible places are then left alone."""
        blocks, sizes = len(self.begin), self.end - self.begin
        tokens = int(sizes.sum()) // self.width + (0 if self.stored else blocks)
        if tokens != self.shard.tokens:
            yield f"{self.path}: the index says {self.shard.tokens:,} tokens, its blocks have {tokens:,}."
        impossible = self.begin > self.shard.bytes - sizes
        if self.stored:
            full = self.dataset.block_tokens
            impossible |= self.begin != block_offset(np.arange(blocks), full, self.width)
            sizes = sizes // self.width
            impossible |= np.where(np.arange(blocks) < blocks - 1, sizes != full, sizes > full)
        else:
            impossible |= self.begin < np.append(0, self.end)[:-1]
        for block in np.flatnonzero(impossible)[:1].tolist():
            where = f"bytes {self.begin[block]:,} to {self.end[block]:,}"
            yield f"{self.path}: the index says {where} of block {block}, which cannot be."
            self.begin, self.end, self.crc32 = self.begin[:0], self.end[:0], self.crc32[:0]

    def _pieces(self) -> Iterator[tuple[int, memoryview]]:
        """(place, bytes) one after the other, in one buffer; no more bytes than the file should have. Raises OSError."""
        buffer = memoryview(bytearray(min(_PIECE, self.shard.bytes)))
        at = 0
        with self.path.open("rb", buffering=0) as file:
            self.size = os.fstat(file.fileno()).st_size
            while count := file.readinto(buffer[: self.shard.bytes - at]):
                yield at, buffer[:count]
                at += count

    def _read(self) -> None:
        """Reads the file once. Raises OSError."""
        sha256 = hashlib.sha256()
        block = before = 0
        for at, piece in self._pieces():
            sha256.update(piece)
            upto = int(np.searchsorted(self.begin, at + len(piece)))
            begins, ends = (places[block:upto].tolist() for places in (self.begin, self.end))
            parts = [piece[max(begin - at, 0) : end - at] for begin, end in zip(begins, ends, strict=True)]
            for number, part in enumerate(parts, block):
                self.crc32[number] = isal_zlib.crc32(part, int(self.crc32[number]))
            block = upto - int(bool(ends) and ends[-1] > at + len(piece))  # it goes on in the next piece
            if not self.plain:
                before += self._look(b"".join(parts), before)
            self.advance(len(piece))
        self.sha256 = sha256.hexdigest()

    def _look(self, content: bytes, before: int) -> int:
        """Takes notice of what blocks hold after `before` other tokens; returns how many these are."""
        translated = content.translate(self.dataset.translate) if self.dataset.translate else self._half + content
        ids = np.frombuffer(translated, dtype=self.dataset.dtype, count=len(translated) // self.width)
        self._half = translated[len(ids) * self.width :]
        vocabulary = self.dataset.vocabulary
        if self.dataset.soft_mask_bit:
            self.soft_masked += int(np.count_nonzero(ids & vocabulary.soft_mask_bit))
            ids = ids & self.dataset.dtype.type(vocabulary.soft_mask_bit - 1)
        self.largest_id = max(self.largest_id, int(ids.max(initial=0)))
        ended = np.flatnonzero(ids == vocabulary.sep)
        self.separators.append(ended + before)
        if self.counts_bases:
            bases = np.cumsum(vocabulary.bases_per_token[np.minimum(ids, len(vocabulary) - 1)])
            self.bases_before.append(self.bases + bases[ended])
            self.bases += int(bases[-1]) if len(bases) else 0
        return len(ids)

    def _lengths(self) -> np.ndarray:
        """Tokens before, between and after the separators of the stream, int64 [separators + 1]."""
        if not self.stored:
            return np.append(self.end - self.begin, 0)
        tokens = (self.end - self.begin).sum() // self.width
        return np.diff(np.concatenate([[-1], *self.separators, [tokens]])) - 1

    def _base_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """The same in bases."""
        if not self.counts_bases:
            return lengths
        return np.diff(np.concatenate([[0], *self.bases_before, [self.bases]]))

    def _wrong_size(self) -> Iterator[str]:
        if self.size == self.shard.bytes:
            return
        whole = int(np.searchsorted(self.end, self.size, side="right"))
        if whole < len(self.end):
            reason = f"it is cut off in block {whole}"
        else:
            reason = "its end is missing" if self.size < self.shard.bytes else "something follows its end"
        yield f"{self.path} has {self.size:,} bytes, the index says {self.shard.bytes:,}: {reason}."

    def _wrong_counts(self, lengths: np.ndarray) -> Iterator[str]:
        """What the index says wrongly of a file that is as it should be."""
        for block in self._damaged():
            yield f"the index has a wrong checksum of block {block}"
        records = np.count_nonzero(lengths) if self.stored else len(self.begin)
        if self.shard.records != records:
            yield f"the index says {self.shard.records:,} records, it holds parts of {records:,}"
        vocabulary = len(self.dataset.vocabulary)
        if self.largest_id >= vocabulary:
            yield f"it has tokens up to {self.largest_id}, the vocabulary ends at {vocabulary - 1}"
        inside = 0 if self.stored else sum(map(len, self.separators))
        if inside:
            yield f"separators stand inside its records, {inside:,} of them"

    def _damaged(self) -> list[int]:
        """The blocks that are there and have another checksum."""
        right = self.shard.blocks["crc32"][: len(self.crc32)]
        blocks: list[int] = np.flatnonzero((self.end <= self.size) & (self.crc32 != right)).tolist()
        return blocks

    def _damage(self) -> list[str]:
        """Where the file differs from what was written, from its beginning to its end. Raises OSError."""
        damaged = self._damaged()
        found: list[tuple[int, str]] = []
        wrong: dict[int, int] = {}  # outside the tokens, place of a byte -> XOR with the right one
        with self.path.open("rb") as file:

            def read(begin: int, size: int) -> bytes:
                file.seek(begin)
                return file.read(size)

            def byte(place: int, xor: int, where: str) -> str:
                value = int.from_bytes(read(place, 1), "big")
                return f"byte {place:,} ({where}) is 0x{value:02x} and should be 0x{value ^ xor:02x}"

            for where, begin, right in self._between() if self.stored else ():
                pairs = enumerate(zip(read(begin, len(right)), right, strict=False), begin)
                if xor := {place: a ^ b for place, (a, b) in pairs if a != b}:
                    wrong |= xor
                    more = f"; {len(xor) - 1:,} more bytes there are wrong" if len(xor) > 1 else ""
                    found.append((begin, byte(*next(iter(xor.items())), where) + more))
            for block, begin in enumerate(() if self.stored else self.begin.tolist()):
                header = begin // TAR_HEADER * TAR_HEADER - TAR_HEADER  # .npy members begin with a header of their own
                if _is_damaged_header(read(max(header, 0), TAR_HEADER)):
                    where = f"the tar header of block {block} (bytes {header:,} to {header + TAR_HEADER:,})"
                    found.append((header, f"{where} does not match its own checksum"))
            single = self._single_bytes(damaged, wrong)
            for block in damaged:
                begin, end = int(self.begin[block]), int(self.end[block])
                if block in single:
                    place, value = single[block]
                    sentence = byte(place, value, f"block {block}, token {(place - begin) // self.width:,}")
                else:
                    sentence = f"block {block} (bytes {begin:,} to {end:,}) does not match its checksum"
                found.append((begin, sentence))
        if not found and self.size >= self.shard.bytes:
            blocks = ", though its blocks match their checksums" if len(self.begin) else ""
            reason = "" if self.stored else ": a tar header or padding is damaged"
            found.append((0, f"it does not match its SHA-256{blocks}{reason}"))
        return [sentence for _, sentence in sorted(found)]

    def _between(self) -> Iterator[tuple[str, int, bytes]]:
        """What the writer puts around the blocks of layout `blocks`: (name, place, bytes)."""
        for block, (begin, end) in enumerate(zip(self.begin.tolist(), self.end.tolist(), strict=True)):
            header = tarfile.TarInfo(f"{self.number:06d}-{block:06d}.bin")
            header.size = end - begin
            yield f"tar header of block {block}", begin - TAR_HEADER, header.tobuf(tarfile.USTAR_FORMAT)
        for end in self.end[-1:].tolist():
            yield "end of the tar", end, bytes(-end % TAR_HEADER + 2 * TAR_HEADER)

    def _single_bytes(self, damaged: Sequence[int], wrong: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """The one wrong byte of each damaged block, {block: (place in the file, XOR with the right byte)}.

        The checksums tell candidates. They are what is wrong if the file, with them and the `wrong` bytes put right, has
        its SHA-256; if it never has, nothing is known, and the answer is empty.
        """
        ways: list[list[tuple[int, int]]] = []
        for block in damaged:
            begin, length = int(self.begin[block]), int(self.end[block] - self.begin[block])
            syndrome = int(self.crc32[block] ^ self.shard.blocks["crc32"][block])
            errors = one_byte_errors(syndrome, length) if self.size >= self.shard.bytes else []
            if not errors:
                return {}
            ways.append([(begin + place, xor) for place, xor in errors])
        for way in islice(product(*ways), _WAYS):
            if self._sha256_with({**wrong, **dict(way)}) == self.shard.sha256:
                return dict(zip(damaged, way, strict=True))
        return {}

    def _sha256_with(self, wrong: Mapping[int, int]) -> str:
        """SHA-256 of the file with these bytes put right. Raises OSError."""
        sha256 = hashlib.sha256()
        places, xor = np.array([*wrong], dtype=np.int64), np.array([*wrong.values()], dtype=np.uint8)
        for at, piece in self._pieces():
            here = (at <= places) & (places < at + len(piece))
            np.frombuffer(piece, dtype=np.uint8)[places[here] - at] ^= xor[here]
            sha256.update(piece)
        return sha256.hexdigest()

    def _wrong_records_file(self, lengths: np.ndarray | None) -> Iterator[str]:
        """Whether the records file, if there is one, can be read and tells the records of `lengths`, if they are known."""
        path = (self.dataset.folder / self.shard.name).with_suffix(".records.parquet")
        if not (self.stored and os.path.lexists(path)):
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                rows = file.read(use_threads=False)
            found = np.stack([np.asarray(rows.column(name), dtype=np.int64) for name in ("shard_start", "length")])
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            number = getattr(error, "errno", None)
            yield f"{path} cannot be read: {os.strerror(number) if number else 'it is damaged'}."
            return
        if lengths is None:
            return
        right = np.stack([np.cumsum(lengths + 1) - lengths - 1, lengths])[:, lengths > 0]
        if found.shape != right.shape:
            yield f"{path} has {found.shape[1]:,} rows, its shard holds parts of {right.shape[1]:,} records."
        elif len(rows := np.flatnonzero((found != right).any(axis=0))):
            (said, size), (begin, length) = found[:, rows[0]].tolist(), right[:, rows[0]].tolist()
            yield (
                f"{path}: row {rows[0]:,} says tokens {said:,} to {said + size:,} of the shard, the record has {begin:,} to "
                f"{begin + length:,}."
            )


def _is_damaged_header(content: bytes) -> bool:
    """Whether 512 bytes of a tar are a header, by its magic, that does not match its own checksum."""
    try:
        tarfile.TarInfo.frombuf(content, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return content[257:262] == b"ustar"
    return False


def one_byte_errors(syndrome: int, length: int) -> list[tuple[int, int]]:
    """Which one wrong byte of `length` changes their CRC-32 by XOR `syndrome`: [(place, XOR with the right byte)].

    CRC-32 is linear: a byte that is wrong by e, with n bytes behind it, changes it by what n + 1 steps of the register make
    of e. So the syndrome is stepped back, and where less than 256 is left of it after n + 1 steps, that is an e.
    """
    back = _byte_back()
    states = _apply(back, np.array([syndrome], dtype=np.uint32))
    while len(states) < min(length, _PIECE):  # after 1 to n steps; `back` goes n at a time
        states, back = np.concatenate([states, _apply(back, states)]), _apply(back, back)
    errors: list[tuple[int, int]] = []
    for done in range(0, length, len(states)):
        behind = np.flatnonzero(states[: length - done] < 256)
        errors += zip((length - 1 - done - behind).tolist(), states[behind].tolist(), strict=True)
        states = _apply(back, states)
    return errors


def _apply(step: np.ndarray, states: np.ndarray) -> np.ndarray:
    """A linear map of 32-bit words, told by what becomes of each value of each of their bytes (uint32 [4, 256])."""
    low: np.ndarray = step[0][states & 255] ^ step[1][states >> 8 & 255]
    high: np.ndarray = step[2][states >> 16 & 255] ^ step[3][states >> 24]
    return low ^ high


def _byte_back() -> np.ndarray:
    """The inverse of what a byte 0 does to the register of CRC-32, for `_apply`."""
    value = np.arange(256, dtype=np.uint32)
    forward = np.array([isal_zlib.crc32(bytes([v])) ^ isal_zlib.crc32(bytes(1)) for v in range(256)], dtype=np.uint32)
    highest = np.empty_like(value)
    highest[forward >> 24] = forward << 8 ^ value
    return np.stack([value << 8, value << 16, value << 24, highest])
