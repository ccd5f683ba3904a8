"""Between the stages: the split of each group, the shuffled order, and the place of every record in its token stream.

Goes through the records by ranges of keys, some hundred thousand at a time. Small against reading and writing, and deterministic:
done twice, or on another machine, it writes the same files.
"""

import json
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data import split
from dnascale.data.prepare.options import SPLITS, PrepareOptions
from dnascale.data.prepare.plan import Work
from dnascale.data.prepare.runs import ROW, Runs, put, text_lengths, texts_of
from dnascale.data.split import DROPPED, Sample, Table
from dnascale.data.take import Taker
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
        ("edges", "<u8"),
        ("name", "<u4"),
        ("label", "<u4"),
        ("source", "<u4"),
        ("reserved", "<u4"),
    ]
)
#: Texts that are mapped at a time: each is an open file, of which a process may have fewer than there are inputs.
_MAPPED_TEXTS = 16
_COPIED = ("token", "tokens", "bases", "start", "edges", "name", "label")


@dataclass(frozen=True)
class Settled:
    """Of each split its sums, what became of all records, and what is said of the splits."""

    splits: dict[str, dict[str, int]]  # records, bases, tokens, longest
    tally: dict[str, Any]
    splitting: dict[str, Any]

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
    return Settled(body["splits"], body["tally"], body["splitting"]) if body["plan"] == work.plan.digest else None


def settle(work: Work) -> Settled:
    """Writes the folder `settled`.

    Raises DataError when a split that was asked for gets no record, the splits share too much, or regions lie on sequences
    that were not met; UsageError when a named group is not there.
    """
    if work.settled.exists() and load_settled(work) is None:  # of another plan
        shutil.rmtree(work.settled, ignore_errors=True)
    staging = work.folder / f"settled.partial-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        settled = _settle(work, staging)
        body = {"plan": work.plan.digest, **asdict(settled)}
        (staging / "done.json").write_text(json.dumps(body))
        staging.replace(work.settled)
    except OSError:
        # Where locks do not pass between hosts, another may have settled the same meanwhile.
        if (of_another := load_settled(work)) is None:
            raise
        return of_another
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return settled


def _settle(work: Work, staging: Path) -> Settled:
    options = work.plan.options
    folders = [work.read(number) for number in range(len(work.plan.inputs))]
    reports = [work.report(number) for number in range(len(work.plan.inputs))]
    tally = Tally()
    for report in reports:
        tally.merge(Tally.from_dict(report["tally"]))
    try:
        Taker(options).check(tally)
        _check_any(tally)
    except DataError as error:
        error.args = (f"{error}{_left_out(reports)}",)
        raise
    answer = split.settle(_tables(folders, reports, staging), options.splitting, work.plan.sampled or 1)
    sums = _place(staging, Runs(folders, [report["runs"] for report in reports]), answer, tally)
    for name in answer.groups:
        if not sums[name]["records"]:
            raise DataError(_empty_split(name, tally.records_out, options))
    if answer.leakage is not None and options.max_leakage is not None:
        rules: Counter[str] = Counter()
        for report in reports:
            rules.update(report["rules"])
        answer.leakage.check(options.max_leakage, dict(sorted(rules.items())))
    return Settled(sums, tally.to_dict(), _splitting(answer))


def _place(folder: Path, runs: Runs, answer: split.Settled, tally: Tally) -> dict[str, dict[str, int]]:
    """Writes the records of each split in the shuffled order, and gives its sums. Counts the duplicates."""
    starts = np.cumsum([0, *map(len, answer.splits)])
    split_of = np.concatenate([np.zeros(0, dtype=np.int8), *answer.splits])
    files = {name: _SplitFiles(folder, name) for name in answer.groups}
    for number in range(runs.ranges):
        rows, sources, texts = runs.read(number)
        found = split_of[starts[sources] + rows["ordinal"].astype(np.int64)]
        for name, of_split in files.items():
            chosen = found == SPLITS.index(name)
            of_split.append(rows[chosen], sources[chosen], texts)
        if dropped := int(np.count_nonzero(found == DROPPED)):
            bases = int(rows["bases"][found == DROPPED].sum())
            tally.drop("the same as an earlier record, on either strand", bases, dropped)
            tally.records_out -= dropped
            tally.bases_out -= bases
    for of_split in files.values():
        of_split.close()
    return {name: of_split.sums for name, of_split in files.items()}


def _tables(folders: Sequence[Path], reports: Sequence[dict[str, Any]], staging: Path) -> list[Table]:
    """What the read tasks have noted, as the splits want it."""

    def arrays(name: str, dtype: str) -> list[np.ndarray]:
        return _joined([folder / name for folder in folders], dtype, staging / name)

    texts_in = lru_cache(_MAPPED_TEXTS)(lambda folder: np.memmap(folder / "texts.bin", np.uint8, mode="r"))
    names = [
        _GroupNames(folder, report["records"], texts_in).of for folder, report in zip(folders, reports, strict=True)
    ]
    tables = list(map(Table, arrays("keys.bin", "<u8"), names))
    if (folders[0] / "digests.bin").exists():  # of all inputs, or of none
        digests = arrays("digests.bin", "(16,)u1")
        tables = [replace(table, digests=digest) for table, digest in zip(tables, digests, strict=True)]
    if reports[0]["sampled"]:
        samples = map(Sample, arrays("sample-values.bin", "<u8"), arrays("sample-counts.bin", "<u4"))
        tables = [replace(table, sample=sample) for table, sample in zip(tables, samples, strict=True)]
    return tables


def _joined(paths: Sequence[Path], dtype: str, joined: Path) -> list[np.ndarray]:
    """The arrays in files, mapped: of several files in one, for a process may have a thousand inputs, not a thousand maps."""
    ends, whole = [], paths[0]
    if len(paths) > 1:
        whole = joined
        with joined.open("wb") as file:
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
                ends.append(file.tell() // np.dtype(dtype).itemsize)
    mapped: np.ndarray = np.memmap(whole, dtype, mode="r") if whole.stat().st_size else np.zeros(0, dtype)
    joined.unlink(missing_ok=True)  # the map stays
    return np.split(mapped, ends[:-1])


class _GroupNames:
    """The names of the groups of an input's records."""

    def __init__(self, folder: Path, records: int, texts_in: Callable[[Path], np.ndarray]) -> None:
        self._folder, self._records, self._texts_in = folder, records, texts_in

    @cached_property
    def _places(self) -> np.ndarray:
        """int64 [2, records]: where the group's name of each record begins in texts.bin, and how long it is."""
        places = np.zeros((2, self._records), dtype=np.int64)
        for rows in _in_parts(self._folder / "rows.bin", self._records):
            places[:, rows["ordinal"].astype(np.int64)] = rows["text"] + rows["name"], rows["label"]
        return places

    def of(self, record: int) -> str:
        begin, length = self._places[:, record].tolist()
        return self._texts_in(self._folder)[begin : begin + length].tobytes().decode()


def _in_parts(path: Path, count: int, most: int = 1 << 18) -> Iterator[np.ndarray]:
    for at in range(0, count, most):
        yield np.fromfile(path, dtype=ROW, count=min(most, count - at), offset=at * ROW.itemsize)


@dataclass
class _SplitFiles:
    """The placed records of one split: rows, their first tokens, and their texts."""

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
        for name in _COPIED:
            placed[name] = rows[name]
        placed["source"] = sources
        lengths = text_lengths(rows)
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


def _splitting(answer: split.Settled) -> dict[str, Any]:
    """What dataset.json says of the splits."""
    return {
        "groups": answer.groups,
        "units": answer.units,
        "largest_units": [asdict(unit) for unit in answer.largest],
        "leakage": asdict(answer.leakage) if answer.leakage else None,
    }


def _left_out(reports: list[dict[str, Any]]) -> str:
    """Of inputs that were left out, which may be why something is missing."""
    why = [report["source"]["skipped"] for report in reports if "skipped" in report["source"]]
    inputs = "1 input was" if len(why) == 1 else f"{len(why):,} inputs were"
    return f" {inputs} left out by --skip-bad-files, the first because of: {why[0]}" if why else ""


def _check_any(tally: Tally) -> None:
    if not tally.records_out:
        reasons = ", ".join(f"{count.records:,} {reason}" for reason, count in sorted(tally.dropped.items()))
        raise DataError(
            f"no sequence is left of {tally.records_in:,} records ({reasons or 'none read'}): there is nothing to train on."
        )


def _empty_split(name: str, kept: int, options: PrepareOptions) -> str:
    if name == "train":
        return (
            f"the train split got none of {kept:,} records: they fall into too few groups. Give more data, or "
            "--valid 0 --test 0."
        )
    share = getattr(options.splitting.holdouts, name)
    return (
        f"the {name} split got none of {kept:,} records (--{name} {share}): the records fall into too few groups. "
        f"Give more data, another share, another --group, or --{name} 0."
    )
