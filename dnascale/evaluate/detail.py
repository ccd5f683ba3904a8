"""A held-out loss taken apart: its interval, how far it is ahead of the best counts, and where in the sequences it is lost.

For vocabularies with one base a token. Every base of the split has been predicted once (`loss.held_out_loss`); here the losses of single
bases are put together again by record and group, codon position, source, soft mask and GC content.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnascale.data.mapped import MappedShards
from dnascale.data.read import WindowReader
from dnascale.data.records import record_tables
from dnascale.data.shards import Dataset
from dnascale.errors import DataError
from dnascale.evaluate.baselines import ContextModel
from dnascale.evaluate.statistics import Estimate, ratio
from dnascale.vocab import PREDICTED_BASES

#: Bases of a stretch whose GC content is looked at, and the bounds between classes of it.
_STRETCH = 512
_GC = (0.35, 0.45, 0.55, 0.65)


class BaseLosses:
    """Of every base of a split, in the order of the stream: nats (float32, nan where it was not predicted), and whether it was right."""

    def __init__(self, reader: WindowReader) -> None:
        self._begins = np.concatenate([[0], np.cumsum(reader.shard_tokens)])
        self.nats = np.full(int(self._begins[-1]), np.nan, dtype=np.float32)
        self.right = np.zeros(len(self.nats), dtype=np.bool_)

    def add(self, shard: np.ndarray, place: np.ndarray, nats: np.ndarray, right: np.ndarray) -> None:
        """Of n bases, `place` in the stream of a shard."""
        at = self._begins[shard] + place
        self.nats[at], self.right[at] = nats, right


@dataclass(frozen=True)
class Part:
    """Some of the bases."""

    name: str
    nats_per_base: float
    accuracy: float
    bases: int


@dataclass(frozen=True)
class Detail:
    """`loss` and `ahead` have 95 % intervals by bootstrap over `unit`s, where there are enough: records that share a group are not
    independent. The unit is the record where the tables that say the groups are not at hand, as behind a URL.
    """

    unit: str
    units: int
    loss: Estimate
    ahead_of: str  # the best of the counts
    ahead: Estimate  # nats per base
    parts: dict[str, list[Part]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "unit": self.unit, "units": self.units, "loss": self.loss.to_dict(), "ahead_of": self.ahead_of, "ahead": self.ahead.to_dict(),
            "parts": {name: [vars(part) for part in parts] for name, parts in self.parts.items()},
        }  # fmt: skip


def take_apart(
    reader: WindowReader, losses: BaseLosses, rivals: Mapping[str, ContextModel], names: Sequence[str] = ()
) -> Detail:
    """`names` of the reader's sources, where there are several. Raises DataError when no base was predicted."""
    streams = [_stream(dataset, reader.split) for dataset in reader.sources]
    stream = np.concatenate(streams)
    vocabulary = reader.sources[0].vocabulary
    letters, soft = stream & (vocabulary.soft_mask_bit - 1), (stream & vocabulary.soft_mask_bit) != 0
    known = ~np.isnan(losses.nats)
    if not known.any():
        raise DataError(f"no base of the {reader.split} split was predicted.")
    ends = np.flatnonzero(letters == vocabulary.sep)
    record = np.zeros(len(stream), dtype=np.int32)
    record[ends[ends + 1 < len(stream)] + 1] = 1
    record = np.cumsum(record, dtype=np.int32)
    first = np.concatenate([[0], ends + 1])[: int(record[-1]) + 1]
    groups, unit = _groups(reader, int(record[-1]) + 1)

    member = groups[record[known]]
    count = int(groups.max()) + 1
    nats = np.bincount(member, losses.nats[known], count)
    bases = np.bincount(member, minlength=count).astype(np.float64)
    theirs = {name: np.bincount(member, _nats(model, letters, ends)[known], count) for name, model in rivals.items()}
    best = min(theirs, key=lambda name: float(theirs[name].sum()))
    units = np.flatnonzero(bases)

    def parts(names: Sequence[str], number: np.ndarray) -> list[Part]:
        """`number` int64 [tokens]: which of the names each base belongs to."""
        of = number[known]
        sums, hits = np.bincount(of, losses.nats[known], len(names)), np.bincount(of, losses.right[known], len(names))
        counts = np.bincount(of, minlength=len(names))
        return [
            Part(name, float(s / n), float(h / n), int(n))
            for name, s, h, n in zip(names, sums, hits, counts, strict=True)
            if n
        ]

    gc = np.digitize(_gc_content(letters), _GC)
    bounds = ["0", *(f"{100 * bound:.0f}" for bound in _GC), "100"]
    found = {
        "base": parts([vocabulary.tokens[n] for n in range(PREDICTED_BASES)], letters.astype(np.int64)),
        "position in the record, modulo 3": parts(
            ["first", "second", "third"], (np.arange(len(stream)) - first[record]) % 3
        ),
        f"GC of {_STRETCH} bases": parts([f"{a} to {b} %" for a, b in itertools.pairwise(bounds)], gc),
    }
    if len(names) > 1:
        found["source"] = parts(names, np.repeat(np.arange(len(streams)), [len(one) for one in streams]))
    if soft.any():
        found["repeats (soft-masked)"] = parts(["outside", "inside"], soft.astype(np.int64))
    of = bases[units]
    ahead = ratio((theirs[best] - nats)[units], of)
    return Detail(unit, len(units), ratio(nats[units], of), best, ahead, found)


def _stream(dataset: Dataset, split: str) -> np.ndarray:
    shards = MappedShards(dataset, split)
    parts = []
    for number in range(len(shards.tokens)):
        parts.append(np.array(shards.stream(number, None)))
        shards.keep([])
    return np.concatenate(parts)


def _groups(reader: WindowReader, records: int) -> tuple[np.ndarray, str]:
    """int64 [records]: the group of each; each its own where the tables of records are not at hand."""
    names: list[str] = []
    try:
        for dataset in reader.sources:
            for table, begins in record_tables(dataset, reader.split, ["group"]):
                names += map(str, table["group"].filter(begins).to_pylist())
    except DataError:
        names = []
    if len(names) != records:
        return np.arange(records), "record"
    return np.unique(np.array(names), return_inverse=True)[1], "group"


def _nats(model: ContextModel, letters: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """float64 [tokens]: -ln p of each base by counts, each record by itself; 0 for what is no base."""
    out = np.zeros(len(letters))
    inside = np.ones(len(letters), dtype=np.bool_)
    inside[ends] = False
    records = [part[part != letters[ends[0]]] if len(ends) else part for part in np.split(letters, ends)]
    out[inside] = model.losses(records)
    return out


def _gc_content(letters: np.ndarray) -> np.ndarray:
    """float64 [tokens]: share of C and G among the bases of the stretch that a token lies in."""
    pad = -len(letters) % _STRETCH
    rows = np.pad(letters, (0, pad), constant_values=PREDICTED_BASES).reshape(-1, _STRETCH)
    base = rows < PREDICTED_BASES
    share = (base & (rows >= 2)).sum(1) / np.maximum(1, base.sum(1))
    return np.repeat(share, _STRETCH)[: len(letters)]
