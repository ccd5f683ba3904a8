"""Windows gathered from mapped shards into one tensor, and windows that cover a split for evaluation."""

import copy
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dnascale.data.mapped import MappedShards, Verify, memory
from dnascale.data.order import Grid, Windows
from dnascale.data.shards import Dataset
from dnascale.errors import DataError

#: Of a data set behind a URL, from how many shards a sample is taken.
_SAMPLED_SHARDS = 16
_PIECE = 1 << 20  # tokens decoded at a time


class _Buffers:
    """Memory for batches, used again once nobody holds it: fresh pages for each would cost as much as the gather."""

    _MOST = 4  # that lie idle

    def __init__(self) -> None:
        self._idle: list[np.ndarray] = []

    def take(self, size: int) -> torch.Tensor:
        """uint8 [size], whose content is undefined."""
        fitting = [buffer for buffer in self._idle if len(buffer) >= size]
        buffer = fitting[-1] if fitting else np.empty(size, dtype=np.uint8)
        self._idle = [other for other in fitting if other is not buffer][: self._MOST - 1]  # too small ones go
        lent = buffer[:]
        weakref.finalize(lent, self._give_back, buffer).atexit = False  # when the last tensor over it is gone
        return torch.from_numpy(lent)[:size]

    def _give_back(self, buffer: np.ndarray) -> None:
        self._idle.append(buffer)

    def __getstate__(self) -> dict[str, object]:
        """A copy for another process begins with none."""
        return {"_idle": []}


class WindowReader:
    """Reads windows of one split of one or several data sets, whose shards are numbered one after the other.

    Not thread-safe: what one thread closes, another may be reading.
    """

    def __init__(
        self, sources: Dataset | Sequence[Dataset], split: str, context: int, verify: Verify = "checksum"
    ) -> None:
        """Raises DataError when a data set has no such split, or none of its shards holds a window."""
        self.sources = [sources] if isinstance(sources, Dataset) else list(sources)
        self.split = split
        self.context = context
        self.dtype = self.sources[0].dtype  # of the tokens
        self.shards = [MappedShards(dataset, split, verify, len(self.sources)) for dataset in self.sources]
        self.shard_tokens = np.concatenate([shards.tokens for shards in self.shards])
        self._buffers = _Buffers()
        self.first_shard = np.cumsum([0] + [len(shards.tokens) for shards in self.shards])
        for dataset, shards in zip(self.sources, self.shards, strict=True):
            if shards.tokens.max(initial=0) < context:
                raise DataError(
                    f"split '{split}' of {dataset.location} has {shards.tokens.sum():,} tokens, fewer than one window of "
                    f"{context:,}: use a smaller model.context or more data."
                )

    def of_context(self, context: int) -> "WindowReader":
        """A reader of the same mapped shards for windows of another length."""
        other = copy.copy(self)
        other.context = context
        return other

    def grids(self) -> list[Grid]:
        """The windows of each source."""
        return [Grid.of(shards.tokens, self.context) for shards in self.shards]

    def read(self, windows: Windows, pin: bool = False) -> torch.Tensor:
        """The tokens of n windows: uint8 or uint16 [n, context], in pinned memory if `pin`. Raises DataError for damaged shards.

        The memory belongs to whoever holds the tensor, or a part of it; it is used again once nobody does.
        """
        shape = len(windows), self.context * self.dtype.itemsize
        if pin:  # PyTorch keeps such memory and uses it again by itself
            out = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            out = self._buffers.take(shape[0] * shape[1]).view(shape)
        for rows in self._at_once(windows):
            part = out if isinstance(rows, slice) else torch.empty(len(rows), shape[1], dtype=torch.uint8)
            self._gather(windows.take(rows), part)
            if part is not out:
                out[torch.from_numpy(rows)] = part
        return out if self.dtype.itemsize == 1 else out.view(torch.uint16)

    def _at_once(self, windows: Windows) -> Iterator[slice | np.ndarray]:
        """The windows in groups, of no more shards than may be open at a time: nearly always all of them."""
        most = min(shards.capacity for shards in self.shards)
        if not len(windows):
            return
        if len(self.shard_tokens) <= most or len(found := np.unique(windows.shard)) <= most:
            yield slice(None)
            return
        for group in range(0, len(found), most):
            yield np.flatnonzero(np.isin(windows.shard, found[group : group + most]))

    def _gather(self, windows: Windows, out: torch.Tensor) -> None:
        """Into the bytes of `out`, uint8 [n, context * bytes of a token]."""
        # Source by source: rows, shards, and where the windows lie.
        parts: list[tuple[slice | np.ndarray, MappedShards, np.ndarray, np.ndarray]] = []
        if len(self.shards) == 1:
            parts.append((slice(None), self.shards[0], windows.shard, windows.start))
        else:
            source = np.searchsorted(self.first_shard, windows.shard, side="right") - 1
            for one, shards in enumerate(self.shards):
                mine = np.flatnonzero(source == one)
                parts.append((mine, shards, windows.shard[mine] - self.first_shard[one], windows.start[mine]))
        located = [shards.locate(shard, start, self.context) for _, shards, shard, start in parts]
        # All that is mapped lies in one range of addresses, of which the windows are rows of an overlapping view.
        address = located[0][0] if len(parts) == 1 else np.empty(len(windows), dtype=np.int64)
        if len(parts) > 1:
            for (rows, *_), (of_source, _) in zip(parts, located, strict=True):
                address[rows] = of_source
        low, high = int(address.min()), int(address.max())
        size = out.shape[1]
        view = torch.from_numpy(memory(low, high - low + size)).as_strided((high - low + 1, size), (1, 1))
        torch.index_select(view, 0, torch.from_numpy(address - low), out=out)
        # Windows over several blocks have read the tar header between them, and are read again in pieces.
        tokens = out.numpy().view(self.dtype)
        for (rows, shards, shard, start), (_, apart) in zip(parts, located, strict=True):
            if shards.translates:
                tokens[rows] = shards.translate(tokens[rows])
            if len(apart):
                there = apart if isinstance(rows, slice) else rows[apart]
                tokens[there] = shards.read_apart(shard[apart], start[apart], self.context)

    def check(self, shard: int, blocks: bool) -> None:
        """Looks at the size of a shard, and compares all its blocks with their checksums if `blocks`. Raises DataError."""
        one = int(np.searchsorted(self.first_shard, shard, side="right")) - 1
        check = self.shards[one].check_all if blocks else self.shards[one].check_size
        check(shard - int(self.first_shard[one]))
        self.release()

    def release(self) -> None:
        """Closes the shards whose files a cache may want to drop."""
        for mapped in self.shards:
            if mapped.dataset.remote:
                mapped.keep([])

    def keep(self, shards: np.ndarray) -> None:
        """Closes all shards but these (int64), so that a cache may drop their files."""
        for first, mapped in zip(self.first_shard.tolist(), self.shards, strict=False):
            mapped.keep((shards[(first <= shards) & (shards < first + len(mapped.tokens))] - first).tolist())


def covering_windows(shard_tokens: np.ndarray, context: int) -> tuple[Windows, np.ndarray]:
    """Windows that hold every token of a split once: (windows, first) for evaluation.

    Each shard is cut at multiples of `context`; its tail is covered by a window that ends at the shard's end, in
    which only positions from `first` on (int64 [n]) are to be counted. A shard shorter than `context` is left out.
    """
    tokens = np.asarray(shard_tokens, dtype=np.int64)
    whole, tail = tokens // context, np.where(tokens >= context, tokens % context, 0)
    count = whole + (tail > 0)
    shard = np.repeat(np.arange(len(tokens)), count)
    place = np.arange(len(shard)) - np.repeat(np.cumsum(count) - count, count)
    in_tail = place == whole[shard]
    start = np.where(in_tail, tokens[shard] - context, place * context)
    first = np.where(in_tail, context - tail[shard], 0)
    windows = Windows(np.zeros_like(shard), shard, start, np.arange(len(shard), dtype=np.int64))
    return windows, first


def split_stream(dataset: Dataset, split: str, max_tokens: int | None = None) -> np.ndarray:
    """The token stream of a split without soft-mask bits, [tokens] of its dtype.

    Of a split of more than `max_tokens` a sample: as much of the beginning of each shard as its share, since data sets that were
    merged, or indexed tars, have their species one after the other. Of a URL it is sixteen shards, or as many as hold so much, for all
    would have to be fetched.
    A record that a shard begins in the middle of is left out, where another begins in its part: what is taken begins with its first base.
    """
    shards = MappedShards(dataset, split)
    ids = dataset.dtype.type(dataset.vocabulary.soft_mask_bit - 1)
    tokens = shards.tokens.astype(np.int64)
    sampled = max_tokens is not None and tokens.sum() > max_tokens
    most = _shares(tokens, max_tokens, dataset.remote is not None) if sampled and max_tokens is not None else tokens
    parts = [np.empty(0, dtype=dataset.dtype)]
    separator = dataset.vocabulary.sep
    for number in np.flatnonzero(most).tolist():
        part = shards.stream(number, int(most[number])) & ids
        shards.keep([])
        if sampled and number:  # begins with a separator, behind what the part before was cut off in
            begins = np.flatnonzero(part == separator)
            part = part[begins[0] :] if begins.size else np.concatenate([[part.dtype.type(separator)], part])
        parts.append(part)
    return np.concatenate(parts)


def _shares(tokens: np.ndarray, most: int, remote: bool) -> np.ndarray:
    """Of shards of so many tokens, int64 [n], how many each gives to a sample of `most`."""
    shards = max(_SAMPLED_SHARDS, -(-len(tokens) * most // int(tokens.sum()))) if remote else len(tokens)
    taken = np.unique(np.linspace(0, len(tokens) - 1, min(shards, len(tokens))).round().astype(np.int64))
    shares = np.zeros_like(tokens)
    shares[taken] = np.minimum(tokens[taken], tokens[taken] * most // tokens[taken].sum())
    return shares


def split_records(dataset: Dataset, split: str, max_tokens: int | None = None) -> list[np.ndarray]:
    """The records of a split in letters, character ids uint8 [bases] each. `max_tokens` bounds the memory; the last
    record of each shard's part may be cut.
    """
    tokens = split_stream(dataset, split, max_tokens)
    # In pieces: to decode takes many times what tokens take.
    pieces = [dataset.vocabulary.decode_codes(tokens[at : at + _PIECE]) for at in range(0, len(tokens), _PIECE)]
    stream = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint8)
    separator = dataset.vocabulary.sep
    parts = np.split(stream, np.flatnonzero(stream == separator) + 1)
    return [part[part != separator] for part in parts if len(part) > 1]
