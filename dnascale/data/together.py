"""What data sets that were prepared apart share: held-out records of one that stand in the training split of another.

Used where they come together, by `dnascale data merge` and by recipes. `prepare` itself audits what it splits; this looks at the shards.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnascale.data.mapped import MappedShards
from dnascale.data.records import record_tables
from dnascale.data.shards import Dataset
from dnascale.data.split import SPLITS, Leakage, Sample, Sketcher, group_key, sampling_for
from dnascale.data.split.leakage import LEAKED_RECORD, audit
from dnascale.errors import DataError

_PIECE = 1 << 20  # tokens
_TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class _Part:
    """A split of a data set, and the sampled 31-mers of its records."""

    name: str
    split: str
    dataset: Dataset
    sample: Sample


def check_together(
    datasets: Mapping[str, Dataset], most: Mapping[str, float], folder: Path, progress: Callable[[int], None]
) -> list[str]:
    """Looks whether held-out records of each data set stand in the training splits of the others. Gives a sentence for each split with such.

    Args:
        datasets: by the name that is said of each.
        most: how much of a held-out split, in 31-mers, may be in such records; data sets with 1 or more are not looked at.
        folder: for temporary files, 8 bytes a sampled 31-mer.
        progress: called with tokens read.

    Raises:
        DataError: more than that is; a shard or a table of records is damaged.
    """
    asked = [name for name, limit in most.items() if limit < 1 and set(datasets[name].splits) - {"train"}]
    if len(datasets) < 2 or not asked:
        return []
    every = sampling_for(sum(split.bases for dataset in datasets.values() for split in dataset.splits.values()))
    said = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        parts = [
            _Part(
                name, split, dataset, _sampled(dataset, split, every, Path(temporary) / f"{number}-{split}", progress)
            )
            for number, (name, dataset) in enumerate(datasets.items())
            for split in dataset.splits
        ]
        for name in asked:
            found = _beside_others(parts, name, every)
            _check(name, found, most[name])
            said += [
                f"{row.split} of {name}: {row.share:.1%} ({row.leaked:,} of {row.records:,} records) stands in the training data of others"
                for row in found.leaked
                if row.leaked
            ]
    return said


def _check(name: str, found: Leakage, most: float) -> None:
    for row in found.leaked:
        if row.share > most:
            worst = ", ".join(group.name for group in found.worst[:3] if group.split == row.split)
            raise DataError(
                f"the {row.split} split of {name} leaks: {row.share:.1%} of it ({row.leaked:,} of {row.records:,} records) are records that "
                f"stand in the training data of the others too, with over {LEAKED_RECORD:.0%} of their 31-mers; worst: {worst}. A loss on "
                "it would flatter the model. Prepare them as inputs of one data set, which is split as a whole (--cluster 0.2 where "
                f"their names differ), hold out the same chromosomes or genes in each, or allow more (--max-leakage, now {most:g})."
            )


def _beside_others(parts: list[_Part], name: str, every: int) -> Leakage:
    """The held-out records of one, beside the training splits of the others."""
    looked_at = [part for part in parts if (part.split == "train") != (part.name == name)]
    sizes = [len(part.sample.counts) for part in looked_at]
    splits = np.repeat(np.array([SPLITS.index(part.split) for part in looked_at], np.int8), sizes)
    groups = [group for part in looked_at if part.split != "train" for group in _groups(part)]
    keys = np.zeros(len(splits), np.uint64)  # of training records nobody asks for the group
    held_out = np.flatnonzero(splits != _TRAIN)
    keys[held_out] = [group_key(group) for group in groups]
    return audit(
        [part.sample for part in looked_at], splits, keys, lambda row: groups[np.searchsorted(held_out, row)], every
    )


def _groups(part: _Part) -> Iterator[str]:
    """The group of every record, in the order of the stream."""
    for table, begins in record_tables(part.dataset, part.split, ["group"]):
        yield from table["group"].filter(begins).to_pylist()


def _sampled(dataset: Dataset, split: str, every: int, file: Path, progress: Callable[[int], None]) -> Sample:
    """The sampled 31-mers of the records of a split; the values lie in a file."""
    sketcher, separator = Sketcher(every), dataset.vocabulary.sep
    shards = MappedShards(dataset, split)
    for number in range(len(dataset.splits[split].shards)):
        stream = shards.stream(number)
        for begin in range(0, len(stream), _PIECE):
            piece = stream[begin : begin + _PIECE]
            codes = dataset.vocabulary.decode_codes(piece)
            done = 0
            for end in np.flatnonzero(codes == separator).tolist():
                sketcher.add(codes[done:end])
                done = end + 1
            sketcher.add(codes[done:], whole=False)
            progress(len(piece))
    values, counts = sketcher.finish()
    if not len(values):
        return Sample(values, counts)
    values.tofile(file)
    return Sample(np.memmap(file, np.uint64, mode="r"), counts)
