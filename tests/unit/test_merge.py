"""Merged data sets: what was in each, once, in the same splits."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fasta import random_fasta, write

from dnascale.cli.data import merge as command
from dnascale.data.merge import merge
from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.read import split_records
from dnascale.data.shards import Dataset
from dnascale.data.verify import verify
from dnascale.errors import DataError, UsageError

OPTIONS = PrepareOptions(valid=0.2, soft_mask=True, max_leakage=None)


def prepared(folder: Path, name: str, seed: int, options: PrepareOptions = OPTIONS) -> Dataset:
    source = write(folder / f"{name}.fa", [(f"{name}{header}", bases) for header, bases in random_fasta(seed)])
    return prepare([source], folder / name, options, block_tokens=512, shard_blocks=2)


def records(dataset: Dataset, split: str) -> Counter[bytes]:
    return Counter(record.tobytes() for record in split_records(dataset, split))


def rows(dataset: Dataset) -> list[tuple[str, str, int]]:
    shards = [shard.name for split in dataset.splits.values() for shard in split.shards]
    found = []
    for name in shards:
        for row in pq.read_table((dataset.folder / name).with_suffix(".records.parquet")).to_pylist():
            found.append((row["record"], row["group"], row["source"]))
    return found


def test_a_merged_data_set_has_the_records_of_all_and_is_whole(tmp_path: Path) -> None:
    parts = [prepared(tmp_path, name, seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    merged = merge([str(part.folder) for part in parts], tmp_path / "merged")
    assert verify(merged) == []
    for split in ("train", "valid"):
        assert records(merged, split) == sum((records(part, split) for part in parts), Counter())
        for key in ("records", "bases", "tokens", "soft_masked"):
            assert getattr(merged.split(split), key) == sum(getattr(part.split(split), key) for part in parts)
    assert merged.cleaning["bases_in"] == sum(part.cleaning["bases_in"] for part in parts)
    assert [source["name"] for source in merged.sources] == ["a.fa", "b.fa", "c.fa"]
    assert Counter(rows(merged)) == Counter(
        (record, group, number) for number, part in enumerate(parts) for record, group, _ in rows(part)
    )


def test_a_sample_of_a_merged_data_set_is_of_all_that_were_merged(tmp_path: Path) -> None:
    """Their shards stand one after the other."""
    whole = []
    for name, letters in (("at", "ACGT" + "AT" * 4), ("gc", "ACGT" + "GC" * 4)):
        draw = random.Random(name)
        records = [(f"{name}{n}", "".join(draw.choices(letters, k=900))) for n in range(60)]
        write(tmp_path / f"{name}.fa", records)
        options = PrepareOptions(valid=0, max_leakage=None)
        whole.append(
            prepare([str(tmp_path / f"{name}.fa")], tmp_path / name, options, block_tokens=512, shard_blocks=16).folder
        )
    merged = merge(whole, tmp_path / "merged")
    known = {record.tobytes() for record in split_records(merged, "train")}
    sample = split_records(merged, "train", 30_000)
    letters = np.concatenate(sample)
    assert 20_000 < len(letters) <= 30_000  # without what shards begin in the middle of
    assert 0.45 < np.isin(letters, [2, 3]).mean() < 0.55  # C and G
    # From their first base on, so that codons stay codons.
    assert all(any(one.startswith(record.tobytes()) for one in known) for record in sample)


def test_annotations_of_one_name_may_be_different_files(tmp_path: Path) -> None:
    parts = []
    for name, span in (("human", "0\t40"), ("mouse", "10\t50")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "regions.bed").write_text(f"{name}\t{span}\n")
        source = write(folder / "genome.fa", [(name, "ACGTTGCA" * 8)])
        options = PrepareOptions(regions=str(folder / "regions.bed"), valid=0, max_leakage=None)
        parts.append(prepare([source], folder / "data", options))
    merged = merge([str(part.folder) for part in parts], tmp_path / "merged")
    assert merged.splits["train"].records == 2
    digests = [origin["files"]["regions.bed"] for origin in merged.options["merged"]]
    assert digests == [part.cleaning["files"]["regions.bed"] for part in parts]
    assert len(set(digests)) == 2


def test_the_same_data_twice_is_refused_also_as_a_copy(tmp_path: Path) -> None:
    one = prepared(tmp_path, "a", 1)
    shutil.copytree(one.folder, tmp_path / "copy")
    for locations in ([str(one.folder)] * 2, [str(one.folder), str(tmp_path / "copy")]):
        with pytest.raises(UsageError, match="are the same data"):
            merge(locations, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_group_in_different_splits_is_an_error_that_names_it(tmp_path: Path) -> None:
    one = prepare([write(tmp_path / "a.fa", [("a gene=G1", "ACGT"), ("b gene=G2", "ACGT")])], tmp_path / "one", PrepareOptions(valid="G1"))  # fmt: skip
    two = prepare([write(tmp_path / "b.fa", [("c gene=G1", "ACGT"), ("d gene=G3", "ACGT")])], tmp_path / "two", PrepareOptions(valid="G3"))  # fmt: skip
    with pytest.raises(DataError, match=r"the group 'G1' is in valid of \S+one and in train of \S+two"):
        merge([str(one.folder), str(two.folder)], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_records_that_are_in_several_are_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fa", [("x gene=G1", "ACGTACGTA"), ("y gene=G2", "TTTTT")])
    again = write(tmp_path / "b.fa", [("z gene=G1", "acgtACGTA"), ("w gene=G2", "GGGGG")])
    for name, file in (("one", source), ("two", again)):
        prepare([file], tmp_path / name, PrepareOptions(valid=0))
    merged = merge([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "merged")
    assert [w for w in merged.cleaning["warnings"] if w.startswith("1 records are in several")]


def test_what_is_in_two_splits_of_one_data_set_is_not_in_several(tmp_path: Path) -> None:
    leaky = write(tmp_path / "a.fa", [("x gene=G1", "ACGTACGTA"), ("y gene=G2", "ACGTACGTA")])
    other = write(tmp_path / "b.fa", [("z gene=G3", "TTTTT"), ("w gene=G2", "GGGGG")])
    for name, file in (("one", leaky), ("two", other)):
        prepare([file], tmp_path / name, PrepareOptions(valid="G2"))
    merged = merge([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "merged")
    assert not [w for w in merged.cleaning["warnings"] if "in several" in w]


@pytest.mark.parametrize(
    ("change", "words"), [({"tokenizer": "kmer:2"}, "different vocabularies"), ({"soft_mask": False}, "soft masks")]
)
def test_data_sets_that_differ_in_their_tokens_are_not_merged(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    one = prepared(tmp_path, "one", 1)
    two = prepared(tmp_path, "two", 2, PrepareOptions(**(OPTIONS.to_dict() | change)))
    with pytest.raises(DataError, match=words):
        merge([str(one.folder), str(two.folder)], tmp_path / "merged")
    with pytest.raises(UsageError, match="at least two"):
        merge([str(one.folder)], tmp_path / "merged")


def test_a_damaged_block_is_not_copied(tmp_path: Path) -> None:
    parts = [prepared(tmp_path, name, seed) for name, seed in (("a", 1), ("b", 2))]
    tar = parts[1].folder / parts[1].split("train").shards.name(0)
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        merge([str(part.folder) for part in parts], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_url_is_refused_in_a_sentence_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNASCALE_CACHE", str(tmp_path / "cache"))
    one, two = prepared(tmp_path, "a", 1), prepared(tmp_path, "b", 2)
    url = f"file://{two.folder}"
    with pytest.raises(UsageError, match=f"^{url} is a URL, and only folders can be merged: "):
        merge([str(one.folder), url], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("tokenizer", ["character", "kmer:6"])
def test_the_bar_ends_at_the_bytes_that_were_copied(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PrepareOptions(valid=0.2, max_leakage=None, tokenizer=tokenizer)
    parts = [str(prepared(tmp_path, name, seed, options).folder) for seed, name in enumerate("ab")]
    sizes, done = [], []

    @contextmanager
    def bar(_what: str, size: int) -> Iterator[Callable[[int], None]]:
        sizes.append(size)
        yield done.append

    monkeypatch.setattr("dnascale.cli.data.bytes_bar", bar)
    command(parts, tmp_path / "merged", 1.0)
    assert sizes == [sum(done)]
