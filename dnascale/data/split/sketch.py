"""A sample of the canonical 31-mers of records, chosen by their content alone, so that two samples can be compared.

A 31-mer is in the sample or not whatever stands around it, and its reverse complement always gets the same answer.
The rule looks at one bit of each base, {A, C} against {T, G}, which the complement flips. It compares bases four
apart: "the bits of bases i and i + 4 differ", for up to nine i. Under the reverse complement i becomes 26 - i, and
both sets of i below are symmetric about 13. The nine comparisons share no base, so that about one 31-mer in 2^9
passes. All positions are tested at once on packed bits, in some twenty passes over one bit a base; the 31-mers
themselves are put together only where the rule says yes (docs/reference/splits.md has the speed and the bias).

Sampling rates are 1, 4, 16, 64, 512 and then any power of two; each sample contains the sparser ones.
"""

import numpy as np

from dnascale.data.order import mix64
from dnascale.errors import UsageError

K = 31

#: The first base of each comparison, for the rates below: one 31-mer in 4, 16, 64, 512.
_ANCHORS: dict[int, tuple[int, ...]] = {
    1: (),
    4: (0, 26),
    16: (0, 26, 8, 18),
    64: (0, 26, 8, 18, 16, 10),
    512: (0, 26, 8, 18, 16, 10, 5, 13, 21),
}
_LAG = 4
_TILE = 1 << 20  # bases at a time: their bits, and what is made of them, fit the cache

_LOW_TWO = np.uint64(0x0303030303030303)
_NOT_ACGT = np.uint64(0x7C7C7C7C7C7C7C7C)  # bits of a code beyond A, T, C, G; bit 7 is the case
_COMPLEMENT = np.uint64(0x5555555555555555)
_ONES = np.uint64(0x0101010101010101)


def sampling_for(bases: int | None, finer: bool = False) -> int:
    """The rate (one 31-mer in how many) for a data set of about so many bases; None: not known.

    Dense where data are small, so that short records have enough to compare; from 2^28 bases on as sparse as costs a
    third of what the rest of prepare does, or, `finer` (for clusters), from 2^32 on. A data set keeps at most 2^26.
    """
    if bases is None:
        return 64 if finer else 512
    steps = ((1 << 20, 1), (1 << 23, 4), (1 << 25, 16), (1 << 32 if finer else 1 << 28, 64))
    for most, rate in steps:
        if bases <= most:
            return rate
    return max(512, 1 << (bases - 1 >> 26).bit_length())


def check_rate(every: int) -> None:
    """Raises UsageError: `every` is no sampling rate."""
    if every not in _ANCHORS and (every < 512 or every & (every - 1)):
        raise UsageError(f"one k-mer in {every} cannot be sampled; the rates are 1, 4, 16, 64, 512, 1024, 2048, ...")


def sketch(codes: np.ndarray, ends: np.ndarray, every: int) -> tuple[np.ndarray, np.ndarray]:
    """The sampled 31-mers of records that stand one after the other.

    Args:
        codes: uint8 [n], character ids (A 0, T 1, C 2, G 3, U counts as T, all others break a 31-mer); bit 7 is ignored.
        ends: int64 [r], where each record ends in `codes`, ascending; the first begins at 0. No 31-mer crosses an end.
        every: one 31-mer in how many, see `sampling_for`.

    Returns:
        uint64 [m], a value for each sampled 31-mer in the order of the bases (equal for a 31-mer and its reverse
        complement, and for nothing else); uint32 [r], how many of them each record has.

    Raises:
        UsageError: `every` is no sampling rate.
    """
    check_rate(every)
    codes = np.ascontiguousarray(codes)
    values, starts = [], []
    for begin in range(0, max(len(codes) - K + 1, 0), _TILE):
        tile = codes[begin : begin + _TILE + K - 1]
        found = _chosen(tile, every)
        value, found = _values(tile, found)
        if every > 512:
            sparse = value < np.uint64(2**64 // (every // 512))
            value, found = value[sparse], found[sparse]
        values.append(value)
        starts.append(found + begin)
    value = np.concatenate(values) if values else np.zeros(0, np.uint64)
    start = np.concatenate(starts) if starts else np.zeros(0, np.int64)
    record = np.searchsorted(ends, start, side="right")
    whole = start + K <= np.asarray(ends)[record] if len(record) else np.zeros(0, bool)
    return value[whole], np.bincount(record[whole], minlength=len(ends)).astype(np.uint32)


class Sketcher:
    """Samples the records of one input, given whole or in pieces; many short ones are looked at together."""

    _ROOM = 4 << 20

    def __init__(self, every: int) -> None:
        check_rate(every)
        self._every = every
        self._buffer = np.empty(self._ROOM, np.uint8)
        self._used = 0
        self._ends: list[int] = []  # of the records that end in the buffer
        self._begun = 0  # sampled 31-mers of the record in hand that have left the buffer
        self._values: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []

    def add(self, codes: np.ndarray, whole: bool = True) -> None:
        """The next record, or the next piece of one: uint8 codes, see `sketch`; `whole`: the record ends with it."""
        done = 0
        while done < len(codes):
            piece = codes[done : done + self._ROOM - self._used]
            self._buffer[self._used : self._used + len(piece)] = piece
            self._used += len(piece)
            done += len(piece)
            if self._used == self._ROOM:
                self._flush()
        if whole:
            self._ends.append(self._used)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all records so far: uint64 [m] values, uint32 [r] how many each has. No record may be half given."""
        self._flush()
        empty: tuple[np.ndarray, np.ndarray] = (np.zeros(0, np.uint64), np.zeros(0, np.uint32))
        return np.concatenate([empty[0], *self._values]), np.concatenate([empty[1], *self._counts])

    def _flush(self) -> None:
        ends = np.array([*self._ends, self._used], dtype=np.int64)
        values, counts = sketch(self._buffer[: self._used], ends, self._every)
        counts[0] += self._begun
        self._values.append(values)
        self._counts.append(counts[:-1])
        self._begun = int(counts[-1])
        # The next 31-mer of a record that goes on begins among its last 30 bases.
        rest = min(self._used - (self._ends[-1] if self._ends else 0), K - 1)
        self._buffer[:rest] = self._buffer[self._used - rest : self._used].copy()
        self._used, self._ends = rest, []


def _chosen(codes: np.ndarray, every: int) -> np.ndarray:
    """int64: the starts of the 31-mers in uint8 `codes` [n] (n >= 31) that the rule chooses, letters unseen."""
    positions = len(codes) - K + 1
    first = _ANCHORS[min(every, 512)]
    if not first:
        return np.arange(positions)
    words = -(-len(codes) // 64) + 1  # a word more than the bits need: shifting reads beyond the end
    bits = np.zeros(words + 1, np.uint64)
    packed = np.packbits(codes & np.uint8(1), bitorder="little")
    bits.view(np.uint8)[: len(packed)] = packed
    differ = bits.copy()
    differ[:-1] ^= _shifted(bits, _LAG)
    chosen = _all_of(differ, first)
    return _positions(chosen, positions)


def _all_of(differ: np.ndarray, first: tuple[int, ...]) -> np.ndarray:
    """Bit p of the answer: bit p + i of `differ` (uint64 words) is set for every i of `first`."""
    by_shift: dict[int, list[int]] = {}
    for i in first:
        by_shift.setdefault(i % 8, []).append(i // 8)
    answer: np.ndarray | None = None
    size = len(differ) * 8
    for shift, offsets in sorted(by_shift.items()):
        bits = differ
        if shift:
            bits = np.zeros_like(differ)
            bits[:-1] = _shifted(differ, shift)
        for offset in offsets:  # whole bytes are skipped by looking further on
            piece = bits.view(np.uint8)[offset:]
            if answer is None:
                answer = np.zeros(size, np.uint8)
                answer[: size - offset] = piece
            else:
                np.bitwise_and(answer[: size - offset], piece, out=answer[: size - offset])
    assert answer is not None
    return answer.view(np.uint64)


def _shifted(words: np.ndarray, by: int) -> np.ndarray:
    """uint64 [n - 1]: the words of one long row of bits, moved down by 0 < `by` < 64 bits."""
    moved = words[:-1] >> np.uint64(by)
    moved |= words[1:] << np.uint64(64 - by)
    return moved


def _positions(bits: np.ndarray, limit: int) -> np.ndarray:
    """int64: which bits below `limit` are set in the row of uint64 words."""
    words = np.flatnonzero(bits != 0)  # numpy finds the true ones among bools far faster than among integers
    inside = np.flatnonzero(np.unpackbits(bits[words].view(np.uint8), bitorder="little").view(np.bool_))
    found = words[inside >> 6] * 64 + (inside & 63)
    return found[found < limit]


def _values(codes: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of the 31-mers at `start` that hold A, C, G, T alone, uint64, and where those start.

    A 31-mer is read as four words of eight bases, from bases 0, 8, 15 and 23: base 15 is read twice, so that the
    reverse complement has the same words in reverse. Two bits of each base side by side make 64 bits.
    """
    eight = np.ndarray(len(codes) - 7, dtype="<u8", buffer=codes.data, strides=(1,))
    words = [eight[start + offset] for offset in (0, 8, 15, 23)]
    other = (words[0] | words[1] | words[2] | words[3]) & _NOT_ACGT
    if other.any():
        words = [_u_as_t(word) for word in words]
        good = (words[0] | words[1] | words[2] | words[3]) & _NOT_ACGT == 0
        words, start = [word[good] for word in words], start[good]
    a, b, c, d = (word & _LOW_TWO for word in words)
    two, four, six = np.uint64(2), np.uint64(4), np.uint64(6)
    forward = a | b << two | c << four | d << six
    backward = (d | c << two | b << four | a << six).byteswap() ^ _COMPLEMENT
    return mix64(np.minimum(forward, backward)), start


def _u_as_t(words: np.ndarray) -> np.ndarray:
    """Eight codes a word, with U (5) made T (1)."""
    one, two, three, four = map(np.uint64, (1, 2, 3, 4))
    is_u = words & (words >> two) & ~((words >> one) | (words >> three) | (words >> four)) & _ONES
    return words ^ (is_u << two)
