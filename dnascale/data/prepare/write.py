"""Stage 2: one output shard, gathered from the runs. A pure function of what was settled and the number of the shard."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.prepare.plan import Work
from dnascale.data.prepare.settle import PLACED
from dnascale.data.prepare.sidecar import EdgesOfRecords, EdgesOfTokens, Stretches, write_sidecar
from dnascale.data.shards import SHARD_NAME
from dnascale.data.writer import TarShard
from dnascale.files import sync, write_whole
from dnascale.vocab import CHARACTER, Vocabulary

Advance = Callable[[int], None]

#: Records whose places are looked up at a time.
_ROWS = 1 << 18
#: Stretches of a file with smaller gaps between them are read in one piece, of at most so many bytes.
_GAP, _WINDOW = 1 << 14, 1 << 22
#: Blocks that wait to be written, at most; and after how many what is written is brought to the disk.
_AHEAD, _SYNCED = 8, 16


def marker(work: Work, split: str, number: int) -> Path:
    return work.written / f"{split}-{number:06d}.json"


def is_written(work: Work, split: str, number: int) -> bool:
    # After the one rename of all shards their markers may still be here, for a moment or after a kill.
    tar = work.shards / f"{split}/{SHARD_NAME % number}"
    return marker(work, split, number).exists() and tar.exists()


def write_shard(work: Work, split: str, number: int, advance: Advance) -> None:
    """Writes shard `number` of a split, its sidecar and its marker. `advance` is called with tokens as they are written."""
    plan = work.plan
    placed = Placed(work.settled, split)
    begin = number * plan.shard_tokens
    end = min(begin + plan.shard_tokens, placed.tokens)
    (work.shards / split).mkdir(parents=True, exist_ok=True)
    work.written.mkdir(exist_ok=True)
    name = f"{split}/{SHARD_NAME % number}"
    path = work.shards / name
    mine = path.with_suffix(f".tar.{os.getpid()}")
    mine.unlink(missing_ok=True)

    vocabulary, soft = plan.vocabulary, plan.vocabulary.dtype.type(plan.vocabulary.soft_mask_bit)
    tokens = np.empty(end - begin, dtype=vocabulary.dtype)
    # Of long records a block is fetched when it is due, and stays in the cache; of short ones all at once, in the order of the files.
    fetched = plan.block_tokens if placed.count(begin, end) <= plan.shard_blocks else len(tokens)
    counts, edges = np.zeros(len(vocabulary), dtype=np.int64), _Edges()
    tar = TarShard(mine, name, number)
    try:
        # Writing and bringing to the disk leave the interpreter to the counting.
        with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as syncer:
            pending: list[Future[None]] = []
            synced: list[Future[None]] = []
            for at in range(0, len(tokens), plan.block_tokens):
                if at % fetched == 0:
                    for rows, places in placed.between(begin + at, min(begin + at + fetched, end)):
                        _fill(tokens[at : at + fetched], rows, places - begin - at, work)
                block = tokens[at : at + plan.block_tokens]
                lower = edges.add(block, soft)
                plain = block & (soft - 1) if lower else block
                counts += count(plain, len(vocabulary))
                pending.append(writer.submit(tar.write, block if plan.options.soft_mask else plain))
                if len(pending) > _AHEAD:
                    pending.pop(0).result()
                if tar.blocks % _SYNCED == _SYNCED - 1:
                    synced.append(syncer.submit(tar.sync))
                advance(len(block))
            for future in pending:
                future.result()
            del tokens
            synced.append(syncer.submit(tar.sync))
            sidecar = mine.with_suffix(".records.parquet")
            stretches = Stretches(placed.between(begin, end), begin, end, work.settled / f"{split}.texts")
            if vocabulary.one_base_a_token:
                records, masked = write_sidecar(sidecar, stretches, EdgesOfTokens(edges.finish()))
            else:
                records, masked = write_sidecar(sidecar, stretches, EdgesOfRecords(BasesBefore(work, vocabulary)))
            synced.append(syncer.submit(sync, sidecar))
            for future in synced:
                future.result()
        shard = tar.finish(records)
    finally:
        tar.close()
    sync(mine)  # what ends it: a moment
    for file, final in ((sidecar, path.with_suffix(".records.parquet")), (mine, path)):
        file.replace(final)
    body = {
        "bytes": shard.bytes, "sha256": shard.sha256, "records": shard.records, "blocks": shard.blocks.tolist(),
        "counts": {str(i): int(counts[i]) for i in np.flatnonzero(counts)}, "soft_masked": masked,
    }  # fmt: skip
    write_whole(marker(work, split, number), json.dumps(body).encode(), durable=False)


class Placed:
    """The placed records of a split: PLACED [n], and the place in the split's stream of the first token of each."""

    def __init__(self, folder: Path, split: str) -> None:
        self._rows = np.memmap(folder / f"{split}.rows", dtype=PLACED, mode="r")
        self._places = np.memmap(folder / f"{split}.places", dtype="<u8", mode="r")
        self.tokens = int(self._places[-1]) + int(self._rows["tokens"][-1])

    def between(self, begin: int, end: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The records with tokens in [begin, end) of the stream, in order, and their places (int64), some at a time."""
        first, last = self._bounds(begin, end)
        for at in range(first, last, _ROWS):
            until = min(at + _ROWS, last)
            yield np.array(self._rows[at:until]), self._places[at:until].astype(np.int64)

    def count(self, begin: int, end: int) -> int:
        """How many records have tokens in [begin, end) of the stream."""
        first, last = self._bounds(begin, end)
        return last - first

    def _bounds(self, begin: int, end: int) -> tuple[int, int]:
        first = int(np.searchsorted(self._places, np.uint64(begin), side="right")) - 1
        return first, int(np.searchsorted(self._places, np.uint64(end), side="left"))


def _fill(out: np.ndarray, rows: np.ndarray, places: np.ndarray, work: Work) -> None:
    """Copies the tokens of rows to their places in `out`, as far as they lie in it."""
    order = np.lexsort((rows["token"], rows["source"]))
    rows, places = rows[order], places[order]
    before = np.maximum(-places, 0)
    targets = places + before
    starts = rows["token"].astype(np.int64) + before
    lengths = np.minimum(rows["tokens"].astype(np.int64) - before, len(out) - targets)
    width = out.itemsize
    bounds = np.flatnonzero(np.diff(rows["source"].astype(np.int64), prepend=-1, append=-1))
    for low, high in pairwise(bounds.tolist()):
        path = work.read(int(rows["source"][low])) / "tokens.bin"
        _fill_from(path, out.view(np.uint8).data, *(width * a[low:high] for a in (targets, starts, lengths)))


def _fill_from(path: Path, out: memoryview, targets: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
    """The same from one file, whose stretches (int64 [n], in bytes) ascend. What lies close together is read in one piece."""
    ends = starts + lengths
    apart = np.flatnonzero((starts[1:] - ends[:-1] > _GAP) | (starts[1:] // _WINDOW != starts[:-1] // _WINDOW)) + 1
    buffer = np.empty(_WINDOW, dtype=np.uint8)
    handle = os.open(path, os.O_RDONLY)
    try:
        for low, high in pairwise([0, *apart.tolist(), len(starts)]):
            begin, size = int(starts[low]), int(ends[high - 1] - starts[low])
            if high - low == 1:  # straight to its place
                read_into(handle, out[int(targets[low]) : int(targets[low]) + size], begin)
                continue
            if size > len(buffer):
                buffer = np.empty(size, dtype=np.uint8)
            window = buffer.data[:size]
            read_into(handle, window, begin)
            stretches = zip(
                targets[low:high].tolist(), (starts[low:high] - begin).tolist(), lengths[low:high].tolist(), strict=True
            )
            for target, start, length in stretches:
                out[target : target + length] = window[start : start + length]
    finally:
        os.close(handle)


def read_into(handle: int, target: memoryview, offset: int) -> None:
    """Fills `target` from a file of the work folder."""
    done = 0
    while done < len(target):
        got = os.preadv(handle, [target[done : done + (1 << 24)]], offset + done)
        if not got:
            raise OSError("a file of the work folder is shorter than it was")
        done += got


class BasesBefore:
    """How many bases the first tokens of a record stand for: where a record goes on that began in an earlier shard."""

    def __init__(self, work: Work, vocabulary: Vocabulary) -> None:
        self._work, self._vocabulary = work, vocabulary

    def __call__(self, row: np.void, tokens: int) -> int:
        """Of the first `tokens` tokens of a placed row."""
        dtype = self._vocabulary.dtype
        mask = dtype.type(self._vocabulary.soft_mask_bit - 1)
        piece, bases = np.empty(1 << 20, dtype=dtype), 0
        handle = os.open(self._work.read(int(row["source"])) / "tokens.bin", os.O_RDONLY)
        try:
            for at in range(0, tokens, len(piece)):
                part = piece[: min(len(piece), tokens - at)]
                read_into(handle, part.view(np.uint8).data, (int(row["token"]) + at) * dtype.itemsize)
                bases += int(self._vocabulary.bases_per_token[part & mask].sum())
        finally:
            os.close(handle)
        return bases


class _Edges:
    """Where lower case begins and ends in a shard, block by block."""

    def __init__(self) -> None:
        self._found = [np.zeros(0, dtype=np.uint32)]
        self._at, self._inside = 0, False

    def add(self, block: np.ndarray, soft: np.unsignedinteger[Any]) -> bool:
        """The next tokens [n], which are lower case from `soft` on; whether any is."""
        lower = bool(block.max() >= soft)
        if lower or self._inside:
            mask = block >= soft
            edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
            if mask[0] != self._inside:
                edges = np.concatenate([[0], edges])
            self._found.append((edges + self._at).astype(np.uint32))
            self._inside = bool(mask[-1])
        self._at += len(block)
        return lower

    def finish(self) -> np.ndarray:
        """uint32 [2 k]: offsets in the shard, begin and end alternating."""
        if self._inside:
            self._found.append(np.array([self._at], dtype=np.uint32))
        return np.concatenate(self._found)


def count(tokens: np.ndarray, size: int) -> np.ndarray:
    """int64 [size]: how often each id is in tokens [n]. Of uint8, bases and separators, nearly all there is, the fast way."""
    counts = np.zeros(size, dtype=np.int64)
    if tokens.itemsize > 1:
        return np.bincount(tokens, minlength=size)
    left, most = len(tokens), int(tokens.max())
    for token in (1, 2, 3, 4, CHARACTER.sep):
        if token <= most:
            counts[token] = np.count_nonzero(tokens == token)
            left -= int(counts[token])
    if most > 4:  # another letter may be there, else what is left is A
        counts[0] = np.count_nonzero(tokens == 0)
        return counts if counts[0] == left else np.bincount(tokens, minlength=size)
    counts[0] = left
    return counts
