"""Several data sets into one: what was prepared on different machines, or at different times. Used by `dnascale data merge`."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from dnascale import __version__
from dnascale.data.mapped import MappedShards
from dnascale.data.records import record_table, record_tables
from dnascale.data.shards import SHARD_NAME, Dataset, Index, Shard, Split, load_dataset
from dnascale.data.tally import Tally
from dnascale.data.together import check_together
from dnascale.data.writer import TarShard
from dnascale.errors import DataError, UsageError
from dnascale.files import whole_folder


def merge(
    locations: Sequence[str],
    out: Path,
    progress: Callable[[int], None] = lambda _bytes: None,
    max_leakage: float = 0.1,
) -> Dataset:
    """Writes the data set `out` with all shards of these, in their order. `progress` is called with bytes of shards written.

    Every block is compared with its checksum on the way. Records that are in several of them are counted, and a warning
    in the report of `out`; so are held-out records of one that stand in the training data of another.

    Raises DataError: one cannot be read or is damaged, they differ in vocabulary, soft mask or block size, a group is in
    one split here and in another there, or more than `max_leakage` of a held-out split stands in the training data of
    others; UsageError: fewer than two, a URL, one twice, `out` is there, or no such share.
    """
    if not 0 <= max_leakage <= 1:
        raise UsageError(f"--max-leakage {max_leakage:g} must be a share, from 0 to 1.")
    if len(locations) < 2:
        raise UsageError("give at least two data sets to merge.")
    datasets = [load_dataset(location) for location in locations]
    _check_alike(datasets)
    _check_groups(datasets)
    for one, other in combinations(datasets, 2):
        if one.fingerprint == other.fingerprint:
            raise UsageError(
                f"{one.location} and {other.location} are the same data, which would count double; name one."
            )
    with whole_folder(out) as work:
        by_name = {dataset.location: dataset for dataset in datasets}
        shared = check_together(by_name, dict.fromkeys(by_name, max_leakage), work, lambda _: None)
        writer = _Writer(work, progress)
        names = list(dict.fromkeys(name for dataset in datasets for name in dataset.splits))
        splits = {name: writer.split(name, datasets) for name in names}
        _describe(datasets, out, splits, writer.repeated, shared).save(work)
    return load_dataset(out)


def _check_alike(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    for dataset in datasets:
        if dataset.remote:
            raise UsageError(
                f"{dataset.location} is a URL, and only folders can be merged: copy it here, and name the copy."
            )
        if dataset.layout != "blocks":
            raise DataError(f"{dataset.location} is an index of tars that others made: list them in one `data index`.")
    for what, of in (
        ("vocabularies", lambda d: d.vocabulary.digest),
        ("soft masks (--soft-mask)", lambda d: d.soft_mask_bit),
        ("block sizes", lambda d: d.block_tokens),
    ):
        for dataset in datasets:
            if of(dataset) != of(first):
                raise DataError(
                    f"{first.location} and {dataset.location} have different {what}: prepare one of them again."
                )


def _check_groups(datasets: Sequence[Dataset]) -> None:
    """Raises DataError when a group stands in different splits of two data sets."""
    hashes = [{name: _group_hashes(dataset, name) for name in dataset.splits} for dataset in datasets]
    for (one, of_one), (other, of_other) in combinations(zip(datasets, hashes, strict=True), 2):
        for here, there in product(of_one, of_other):
            common = np.intersect1d(of_one[here], of_other[there])
            if here != there and len(common):
                name = next(g for g in _groups(one, here) if _hash(g) == int(common[0]))
                raise DataError(
                    f"the group {name!a} is in {here} of {one.location} and in {there} of {other.location}: merged, "
                    f"training would see what it is evaluated on ({len(common):,} such groups). Prepare one of them again with "
                    "the same --valid, --test and --group."
                )


def _groups(dataset: Dataset, split: str) -> Iterator[str]:
    """The names of the groups of a split, those of a shard once each."""
    for table, _ in record_tables(dataset, split, ["group"]):
        yield from table["group"].unique().to_pylist()


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _group_hashes(dataset: Dataset, split: str) -> np.ndarray:
    """uint64 [groups], sorted."""
    return np.unique(np.fromiter(map(_hash, _groups(dataset, split)), dtype=np.uint64))


class _Writer:
    """Copies shards under new numbers, and looks for records that come twice."""

    def __init__(self, folder: Path, progress: Callable[[int], None]) -> None:
        self.folder, self.progress = folder, progress
        self._records: dict[int, np.ndarray] = {}  # of each data set, the different hashes of its records

    def split(self, name: str, datasets: Sequence[Dataset]) -> Split:
        (self.folder / name).mkdir()
        shards: list[Shard] = []
        sources = 0
        for place, dataset in enumerate(datasets):
            if name in dataset.splits:
                hashes = _RecordHashes(dataset)
                mapped = MappedShards(dataset, name)
                for number in range(len(dataset.splits[name].shards)):
                    shards.append(self._shard(dataset, name, number, mapped.stream(number), len(shards), hashes))
                    self._copy_sidecar(dataset, name, number, len(shards) - 1, sources)
                found = np.array(hashes.found, dtype=np.uint64)
                self._records[place] = np.union1d(self._records.get(place, found), found)
            sources += len(dataset.sources)
        of_each = [dataset.splits[name] for dataset in datasets if name in dataset.splits]
        composition: Counter[str] = Counter()
        for split in of_each:
            composition.update(split.composition)
        order = datasets[0].vocabulary.tokens.index
        return Split(
            records=sum(split.records for split in of_each),
            bases=sum(split.bases for split in of_each),
            tokens=sum(split.tokens for split in of_each),
            longest_record=max(split.longest_record for split in of_each),
            soft_masked=sum(split.soft_masked for split in of_each),
            composition={letter: composition[letter] for letter in sorted(composition, key=order)},
            shards=Index.of(shards, f"{name}/{SHARD_NAME}"),
        )

    @property
    def repeated(self) -> int:
        """How many different records are in several of the data sets, whatever their splits."""
        _, times = np.unique(np.concatenate(list(self._records.values())), return_counts=True)
        return int((times > 1).sum())

    def _shard(
        self, dataset: Dataset, split: str, number: int, stream: np.ndarray, new: int, hashes: "_RecordHashes"
    ) -> Shard:
        name = f"{split}/{SHARD_NAME % new}"
        tar = TarShard(self.folder / name, name, new)
        try:
            for at in range(0, len(stream), dataset.block_tokens):
                block = np.array(stream[at : at + dataset.block_tokens])
                hashes.add(block)
                tar.write(block)
                self.progress(block.nbytes)
            return tar.finish(int(dataset.splits[split].shards.shards["records"][number]))
        finally:
            tar.close()

    def _copy_sidecar(self, dataset: Dataset, split: str, number: int, new: int, sources: int) -> None:
        """With the numbers of the sources as they are in the merged data set."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(record_table(dataset, split, number))
        column = table.schema.get_field_index("source")
        moved = pa.array(table["source"].to_numpy() + np.int32(sources), pa.int32())
        table = table.set_column(column, table.schema.field(column), moved)
        path = (self.folder / split / (SHARD_NAME % new)).with_suffix(".records.parquet")
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)


class _RecordHashes:
    """64 bits of the tokens of every record in a stream that comes in blocks; lower case is as upper case."""

    def __init__(self, dataset: Dataset) -> None:
        self._mask = dataset.vocabulary.dtype.type(dataset.vocabulary.soft_mask_bit - 1)
        self._separator = dataset.vocabulary.sep
        self._hash = hashlib.blake2b(digest_size=8)
        self.found: list[int] = []

    def add(self, block: np.ndarray) -> None:
        plain = block & self._mask
        done = 0
        for end in np.flatnonzero(plain == self._separator).tolist():
            self._hash.update(plain[done:end].data)
            self.found.append(int.from_bytes(self._hash.digest()))
            self._hash, done = hashlib.blake2b(digest_size=8), end + 1
        self._hash.update(plain[done:].data)


def _describe(
    datasets: Sequence[Dataset], out: Path, splits: dict[str, Split], repeated: int, shared: Sequence[str]
) -> Dataset:
    cleaning, rules = Tally(), Counter[str]()
    for dataset in datasets:
        # Files of regions may have one name and be others: NCBI calls every annotation genomic.gff.
        cleaning.merge(Tally.from_dict(Tally().to_dict() | dataset.cleaning | {"files": {}}))
        rules.update(dataset.groups)
    if repeated:
        cleaning.warn(
            f"{repeated:,} records are in several of the merged data sets with the same bases: they count double"
        )
    for sentence in shared:
        cleaning.warn(sentence)
    cleaning.balance()
    return Dataset(
        folder=out,
        name=out.name,
        created_by=f"dnascale {__version__}",
        vocabulary=datasets[0].vocabulary,
        soft_mask_bit=datasets[0].soft_mask_bit,
        sources=[source for dataset in datasets for source in dataset.sources],
        options={"merged": [_origin(dataset) for dataset in datasets]},
        cleaning=cleaning.to_report(),
        groups=dict(sorted(rules.items())),
        splits=splits,
        block_tokens=datasets[0].block_tokens,
    )


def _origin(dataset: Dataset) -> dict[str, Any]:
    files = dataset.cleaning.get("files", {})
    return {"name": dataset.name, "fingerprint": dataset.fingerprint, "options": dataset.options, "files": files}
