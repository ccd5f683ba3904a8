"""Between the stages: the split of each group, the shuffled order, and the place of every record in its token stream.

Goes through the records by ranges of keys, a million at a time. Small against reading and writing, and deterministic: done twice, or
on another machine, it writes the same files.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.prepare.options import SPLITS, PrepareOptions
from dnascale.data.prepare.plan import Work
from dnascale.data.prepare.read import group_hash
from dnascale.data.prepare.runs import ROW, Runs, put, texts_of
from dnascale.data.tally import Tally
from dnascale.errors import DataError

#: A record in its place. Offsets and lengths of tokens count the separator, and are in tokens.
PLACED = np.dtype(
    [
        ("token", "<u8"),  # offset in its input's tokens.bin
        ("tokens", "<u8"),
        ("bases", "<u8"),
        ("start", "<u8"),
        ("text", "<u8"),  # offset in the split's texts
        ("source", "<u4"),
        ("name", "<u4"),
        ("label", "<u4"),
        ("reserved", "<u4"),
    ]
)


@dataclass(frozen=True)
class Settled:
    """Of each split its sums, and the records that were dropped on the way."""

    splits: dict[str, dict[str, int]]  # records, bases, tokens, longest
    tally: dict[str, Any]

    def shards(self, shard_tokens: int) -> list[tuple[int, str, int]]:
        """(number, split, tokens) of every shard to write."""
        return [
            (number, split, min(shard_tokens, sums["tokens"] - number * shard_tokens))
            for split, sums in self.splits.items()
            for number in range(-(-sums["tokens"] // shard_tokens))
        ]


def load_settled(work: Work) -> Settled | None:
    """None when it has not been done for this plan."""
    try:
        body = json.loads((work.settled / "done.json").read_bytes())
    except FileNotFoundError:
        return None
    return Settled(body["splits"], body["tally"]) if body["plan"] == work.plan.digest else None


def settle(work: Work) -> Settled:
    """Writes the folder `settled`. Raises DataError when a split that was asked for gets no record."""
    plan = work.plan
    reports = [work.report(number) for number in range(len(plan.inputs))]
    staging = work.folder / "settled.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    runs = Runs([work.read(number) for number in range(len(plan.inputs))], [report["runs"] for report in reports])
    shares = {"train": 1.0, "valid": plan.options.valid, "test": plan.options.test}
    splits = {name: _SplitFiles(staging, name) for name in SPLITS if shares[name] > 0}
    for number in range(runs.ranges):
        rows, sources, texts = runs.read(number)
        split_numbers = splits_of(rows["group"], plan.options)
        for name, files in splits.items():
            chosen = split_numbers == SPLITS.index(name)
            files.append(rows[chosen], sources[chosen], texts)
    for files in splits.values():
        files.close()
    tally = sum_tally(reports)
    for name, files in splits.items():
        if not files.sums["records"]:
            raise DataError(_empty_split(name, tally, plan.options))
    settled = Settled({name: files.sums for name, files in splits.items()}, tally.to_dict())
    body = {"plan": plan.digest, "splits": settled.splits, "tally": settled.tally}
    (staging / "done.json").write_text(json.dumps(body))
    shutil.rmtree(work.settled, ignore_errors=True)
    staging.replace(work.settled)
    return settled


def sum_tally(reports: list[dict[str, Any]]) -> Tally:
    tally = Tally()
    for report in reports:
        tally.merge(Tally.from_dict(report["tally"]))
    return tally


def splits_of(groups: np.ndarray, options: PrepareOptions) -> np.ndarray:
    """int8 [n]: index into SPLITS for the hashes of groups (uint64 [n])."""
    place = groups / 2**64
    return np.where(place < options.valid, 1, np.where(place < options.valid + options.test, 2, 0)).astype(np.int8)


def split_of(group: str, options: PrepareOptions) -> str:
    """The split of a group: a hash of its name alone, so that adding data never moves a group."""
    return SPLITS[int(splits_of(np.array([group_hash(group)], dtype=np.uint64), options)[0])]


@dataclass
class _SplitFiles:
    """The placed records of one split: rows, their first tokens, and their names and groups."""

    folder: Path
    split: str
    sums: dict[str, int] = field(default_factory=lambda: {"records": 0, "bases": 0, "tokens": 0, "longest": 0})

    def __post_init__(self) -> None:
        self._files = [
            (self.folder / f"{self.split}.{what}").open("wb", buffering=0) for what in ("rows", "places", "texts")
        ]
        self._text = 0

    def append(self, rows: np.ndarray, sources: np.ndarray, texts: bytearray) -> None:
        """Rows (ROW [n]) in order, which follow those before."""
        if not len(rows):
            return
        placed = np.zeros(len(rows), dtype=PLACED)
        for name in set(PLACED.names or ()) & set(ROW.names or ()):
            placed[name] = rows[name]
        placed["source"] = sources
        lengths = rows["name"].astype(np.int64) + rows["label"]
        placed["text"] = self._text + np.cumsum(lengths) - lengths
        counts = rows["tokens"].astype(np.int64)
        places = self.sums["tokens"] + np.cumsum(counts) - counts
        for file, data in zip(self._files, (placed, places.astype("<u8"), texts_of(rows, texts)), strict=True):
            put(file, data)
        self._text += int(lengths.sum())
        self.sums["records"] += len(rows)
        self.sums["bases"] += int(rows["bases"].sum())
        self.sums["tokens"] += int(counts.sum())
        self.sums["longest"] = max(self.sums["longest"], int(rows["bases"].max()))

    def close(self) -> None:
        for file in self._files:
            file.close()


def _empty_split(name: str, tally: Tally, options: PrepareOptions) -> str:
    kept = tally.records_out
    if not kept:
        reasons = ", ".join(f"{count.records:,} {reason}" for reason, count in sorted(tally.dropped.items()))
        return f"no sequence is left of {tally.records_in:,} records ({reasons or 'none read'}): there is nothing to train on."
    if name == "train":
        return (
            f"the train split got none of {kept:,} records: they fall into too few groups. Give more data, or "
            "--valid 0 --test 0."
        )
    share = {"valid": options.valid, "test": options.test}[name]
    return (
        f"the {name} split got none of {kept:,} records (--{name} {share:g}): the records fall into too few groups. "
        f"Give more data, another share, another --group, or --{name} 0."
    )
