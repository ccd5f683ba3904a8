"""Which records are the same sequence: a digest that does not see strand or case, and the first record of each."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from dnascale.vocab import CHARACTER, SOFT_MASK_BIT

_PIECE = 1 << 20
_SORTED_AT_ONCE = 1 << 21  # records

_U, _T = CHARACTER.tokens.index("U"), CHARACTER.tokens.index("T")
_ACGT = 4  # ids below are A, T, C, G, and the complement of one is that id ^ 1


def content_digest(codes: Callable[[int, int], np.ndarray], length: int) -> bytes:
    """16 bytes for a sequence of `length` bases; `codes(start, end)` gives its character ids, uint8: `Record.codes`.

    Equal for a sequence and its reverse complement, in upper or lower case (bit 7), with T or U. It is the SHA-256,
    cut, of whichever strand comes first in the order of the codes. Reads a MiB at a time.
    """
    digest = hashlib.sha256()
    backward = _complement_is_first(codes, length)
    for begin in range(0, length, _PIECE):
        end = min(begin + _PIECE, length)
        piece = _complement(codes(length - end, length - begin)) if backward else _plain(codes(begin, end))
        digest.update(piece.data)
    return digest.digest()[:16]


def _complement_is_first(codes: Callable[[int, int], np.ndarray], length: int) -> bool:
    """Whether the reverse complement sorts before the sequence: nearly always the first base decides."""
    begin, size, half = 0, 64, (length + 1) // 2
    while begin < half:
        end = min(begin + size, half)
        one, other = _plain(codes(begin, end)), _complement(codes(length - end, length - begin))
        differ = np.flatnonzero(one != other)
        if len(differ):
            return bool(other[differ[0]] < one[differ[0]])
        begin, size = end, min(size * 4, _PIECE)
    return False


def _plain(codes: np.ndarray) -> np.ndarray:
    """Without the bit of the case, and with U as T, so that the complement of a complement is the sequence."""
    plain = np.asarray(codes) & np.uint8(~SOFT_MASK_BIT & 0xFF)
    plain[plain == _U] = _T
    return plain


def _complement(codes: np.ndarray) -> np.ndarray:
    """The reverse complement, plain."""
    plain = np.ascontiguousarray(_plain(codes)[::-1])
    if not len(plain) or plain.max() < _ACGT:
        return plain ^ np.uint8(1)
    return np.asarray(CHARACTER.complement_table[plain])


def later_copies(digests: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which records repeat the content of an earlier one, in the order of the tables and of their rows.

    Args:
        digests: uint8 [records, 16] for each table, arrays or memory maps.

    Returns:
        bool [records] for each table: True where an earlier record has the same digest. The first of each is kept.

    Memory: 200 MB for the sorting and 1 byte a record, whatever their number: digests are compared by ranges of their
    first byte, each in a pass over the tables.
    """
    if not digests:
        return []
    starts = np.cumsum([0, *map(len, digests)])
    repeats = np.zeros(starts[-1], dtype=np.bool_)
    for low, high in _ranges(max(1, -(-len(repeats) // _SORTED_AT_ONCE))):
        rows, keys = [], []
        for start, table in zip(starts[:-1].tolist(), digests, strict=True):
            first = np.asarray(table[:, 0])
            found = np.flatnonzero((first >= low) & (first <= high))
            rows.append(found + start)
            keys.append(np.ascontiguousarray(table[found]).view(">u8").reshape(-1, 2))
        row, key = np.concatenate(rows), np.concatenate(keys)
        order = np.lexsort((key[:, 1], key[:, 0]))  # stable: the first record of each comes first
        same = (key[order[1:]] == key[order[:-1]]).all(axis=1)
        repeats[row[order[1:][same]]] = True
    return np.split(repeats, starts[1:-1])


def _ranges(count: int) -> Iterator[tuple[int, int]]:
    """0..255 as `count` (at most 256) ranges, first and last included."""
    edges = np.linspace(0, 256, min(count, 256) + 1).astype(int).tolist()
    return ((low, high - 1) for low, high in pairwise(edges))
