"""Sequences to shards: nothing lost or leaked between splits, the same bytes every time, all or nothing."""

from __future__ import annotations

import functools
import gzip
import os
import random
import shutil
from collections import Counter, defaultdict
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fasta import random_fasta, tree, write

from dnascale.data.mapped import MappedShards
from dnascale.data.prepare import PrepareOptions, prepare, runs
from dnascale.data.read import split_records
from dnascale.data.shards import Dataset, load_dataset
from dnascale.data.verify import verify
from dnascale.vocab import CHARACTER

BLOCK = 512


def rows_of(dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    """Per split, the rows of all its sidecars in shard order; `shard` is added."""
    return {
        name: [
            row | {"shard": index}
            for index, shard in enumerate(split.shards)
            for row in pq.read_table(dataset.folder / shard.name.replace(".tar", ".records.parquet")).to_pylist()
        ]
        for name, split in dataset.splits.items()
    }


def text_of(tokens: np.ndarray) -> str:
    return CHARACTER.decode(tokens.astype(np.int64))


def splits_of_groups(dataset: Dataset) -> dict[str, set[str]]:
    found = defaultdict(set)
    for split, rows in rows_of(dataset).items():
        for row in rows:
            found[row["group"]].add(split)
    return found


#: Blocks of 512 tokens, two in a shard.
prepare_small = functools.partial(prepare, block_tokens=BLOCK, shard_blocks=2)
SHARD = 2 * BLOCK


# --- nothing is lost, nothing leaks ---


@pytest.mark.parametrize("min_length", [1, 10])
def test_every_record_and_base_comes_out_once_or_is_counted_as_dropped(tmp_path: Path, min_length: int) -> None:
    records = random_fasta(1)
    halves = [write(tmp_path / "a.fa", records[:140]), write(tmp_path / "b.fa", records[140:])]
    dataset = prepare_small(halves, tmp_path / "out", PrepareOptions(valid=0.2, test=0.1, min_length=min_length))

    kept = [(header, bases) for header, bases in records if len(bases) >= min_length]
    out = {split: [text_of(r) for r in split_records(dataset, split)] for split in dataset.splits}
    assert Counter(r for of_split in out.values() for r in of_split) == Counter(b.upper() for _, b in kept)

    report = dataset.cleaning
    lost = dataset.cleaning["dropped"].values()
    assert report["records_in"] == len(records) == report["records_out"] + sum(d["records"] for d in lost)
    assert report["bases_in"] == sum(len(b) for _, b in records) == report["bases_out"] + sum(d["bases"] for d in lost)
    empty = [bases for _, bases in records if not bases]
    assert report["dropped"]["empty sequence"] == {"records": len(empty), "bases": 0}
    short = [bases for _, bases in records if 0 < len(bases) < min_length]
    if min_length > 1:
        expected = {"records": len(short), "bases": sum(map(len, short))}
        assert report["dropped"][f"shorter than {min_length} bases"] == expected
    for name, split in dataset.splits.items():
        letters = Counter("".join(out[name]))
        assert split.composition == letters
        assert split.records == len(out[name])
        assert split.bases == letters.total()
        assert split.tokens == split.bases + split.records == sum(shard.tokens for shard in split.shards)
        assert split.longest_record == max(map(len, out[name]))
    assert sum(split.soft_masked for split in dataset.splits.values()) == sum(
        letter.islower() for _, bases in kept for letter in bases
    )
    assert [source["records"] for source in dataset.sources] == [140, 160]


def test_records_of_one_gene_never_straddle_splits_and_stay_when_records_are_added(tmp_path: Path) -> None:
    records = random_fasta(2)
    options = PrepareOptions(valid=0.2, test=0.2)
    few = write(tmp_path / "few.fa", records[:120])
    rest = write(tmp_path / "rest.fa", records[120:])
    before = splits_of_groups(prepare([few], tmp_path / "before", options))
    after = splits_of_groups(prepare([rest, few], tmp_path / "after", options))
    assert all(len(splits) == 1 for splits in after.values())
    assert set(before) < set(after)
    assert all(after[group] == splits for group, splits in before.items())
    assert {split for splits in after.values() for split in splits} == {"train", "valid", "test"}


def test_isoforms_of_the_built_in_data_stay_together(tmp_path: Path) -> None:
    dataset = prepare(["builtin:human-cds"], tmp_path / "out", PrepareOptions())
    rows = rows_of(dataset)
    assert all(len(splits) == 1 for splits in splits_of_groups(dataset).values())
    groups = Counter(row["group"] for of_split in rows.values() for row in of_split)
    assert max(groups.values()) > 1
    share = dataset.split("valid").records / sum(split.records for split in dataset.splits.values())
    assert share == pytest.approx(0.1, abs=0.03)


def test_a_pattern_names_the_groups(tmp_path: Path) -> None:
    records = [(f"chr{i % 7}:{i} gene=G{i}", "ACGT") for i in range(70)]
    options = PrepareOptions(valid=0.3, group=r"^(chr\d+):")
    dataset = prepare([write(tmp_path / "a.fa", records)], tmp_path / "out", options)
    assert dataset.groups == {"pattern": 70}
    groups = splits_of_groups(dataset)
    assert set(groups) == {f"chr{i}" for i in range(7)}
    assert all(len(splits) == 1 for splits in groups.values())


# --- the same bytes ---


def test_the_same_input_twice_gives_identical_bytes_of_every_file(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fa", random_fasta(3))
    options = PrepareOptions(valid=0.2, soft_mask=True)
    one, other = (prepare_small([source], tmp_path / folder / "out", options) for folder in ("one", "other"))
    assert tree(one.folder) == tree(other.folder)
    assert len(tree(one.folder)) > 8
    assert set(os.listdir(one.folder)) == {"dataset.json", "train", "valid"}


def test_line_lengths_line_ends_and_compression_of_the_input_do_not_matter_to_the_shards(tmp_path: Path) -> None:
    records = random_fasta(4)
    plain = write(tmp_path / "a.fa", records)
    folded = "".join(f">{h}\r\n" + "".join(f"{b[i : i + 7]}\r\n" for i in range(0, len(b), 7)) for h, b in records)
    (tmp_path / "a.fa.gz").write_bytes(gzip.compress(folded.encode()))
    options = PrepareOptions(soft_mask=True)
    one = prepare([plain], tmp_path / "one", options)
    other = prepare([str(tmp_path / "a.fa.gz")], tmp_path / "other", options)
    shards = [{k: v for k, v in tree(d.folder).items() if k != "dataset.json"} for d in (one, other)]
    assert shards[0] == shards[1]
    assert one.fingerprint == other.fingerprint


def test_records_are_written_in_a_random_order_that_the_seed_decides(tmp_path: Path) -> None:
    records = [(f"r{i}", "ACGT") for i in range(1000)]
    source = write(tmp_path / "a.fa", records)
    orders = []
    for seed in (0, 1):
        dataset = prepare([source], tmp_path / f"out{seed}", PrepareOptions(seed=seed))
        orders.append([int(row["record"][1:]) for row in rows_of(dataset)["train"]])
    assert sorted(orders[0]) == sorted(orders[1])  # the seed moves nothing between splits
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.15
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.15
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < 0.15


@pytest.mark.filterwarnings("error")
def test_where_runs_end_does_not_matter_to_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted runs of a few records, of a few bytes, or all in one; ranges of keys in many pieces."""
    sources = [write(tmp_path / f"{n}.fa", [(f"{n}{h}", b) for h, b in random_fasta(n)]) for n in (1, 2)]
    whole = tree(prepare_small(sources, tmp_path / "whole" / "out", PrepareOptions(soft_mask=True)).folder)
    for number, (rows, size) in enumerate(((7, 1 << 25), (1 << 18, 300), (1, 1))):
        with monkeypatch.context() as patch:
            patch.setattr(runs.RunWriter.__init__, "__defaults__", (rows, size))
            patch.setattr(runs.Runs.__init__, "__defaults__", (rows,))
            made = prepare_small(sources, tmp_path / f"{number}" / "out", PrepareOptions(soft_mask=True))
        assert tree(made.folder) == whole


# --- soft mask and sidecar ---


@pytest.mark.parametrize("soft_mask", [False, True])
def test_lower_case_is_in_the_sidecar_always_and_in_bit_7_when_asked_for(tmp_path: Path, soft_mask: bool) -> None:
    special = [("all", "acgt"), ("none", "ACGT"), ("ends", "aCGt"), ("i", "iAiiA")]
    records = dict([*random_fasta(5, count=60), *special])
    by_name = {header.split()[0]: bases for header, bases in records.items()}
    source = write(tmp_path / "a.fa", list(records.items()))
    dataset = prepare([source], tmp_path / "out", PrepareOptions(valid=0, soft_mask=soft_mask))
    assert len(dataset.split("train").shards) == 1
    tokens = MappedShards(dataset, "train").stream(0)
    assert dataset.soft_mask_bit is soft_mask
    for row in rows_of(dataset)["train"]:
        bases = by_name[row["record"]]
        inside = [False, *(letter in "acgt" for letter in bases), False]
        edges = [i for i, (before, now) in enumerate(pairwise(inside)) if before != now]
        assert row["soft_mask_edges"] == edges
        stored = tokens[row["shard_start"] : row["shard_start"] + row["length"]]
        assert text_of(stored) == (bases if soft_mask else bases.upper().replace("I", "i"))
        assert tokens[row["shard_start"] + row["length"]] == CHARACTER.sep


def test_parts_of_records_tile_the_records_and_the_shards(tmp_path: Path) -> None:
    rng = random.Random(6)
    lengths = [5 * SHARD + 17, 3, SHARD, 1, SHARD - 1, 2 * SHARD, 700, 699]
    records = {f"r{i}": "".join(rng.choices("ACGTacgt", k=length)) for i, length in enumerate(lengths)}
    source = write(tmp_path / "a.fa", list(records.items()))
    dataset = prepare_small([source], tmp_path / "out", PrepareOptions(valid=0, soft_mask=True))
    shards = dataset.split("train").shards
    assert [shard.tokens for shard in shards[:-1]] == [SHARD] * (len(shards) - 1)
    mapped = MappedShards(dataset, "train")
    streams = [mapped.stream(number) for number in range(len(shards))]
    covered = [np.zeros(len(stream), dtype=int) for stream in streams]
    parts = defaultdict(list)
    rows = rows_of(dataset)["train"]
    for row in rows:
        here = slice(row["shard_start"], row["shard_start"] + row["length"])
        covered[row["shard"]][here] += 1
        parts[row["record"]].append((row["record_start"], text_of(streams[row["shard"]][here])))
        edges = row["soft_mask_edges"]
        lower = list(chain.from_iterable(map(range, edges[::2], edges[1::2])))
        assert lower == [i for i, letter in enumerate(parts[row["record"]][-1][1]) if letter.islower()]
    for name, bases in records.items():
        assert [start for start, _ in parts[name]] == list(np.cumsum([0, *(len(text) for _, text in parts[name])])[:-1])
        assert "".join(text for _, text in parts[name]) == bases
    for stream, counts in zip(streams, covered, strict=True):
        assert ((counts == 1) == (stream != CHARACTER.sep)).all()
    assert [shard.records for shard in shards] == [
        sum(row["shard"] == index for row in rows) for index in range(len(shards))
    ]
    assert verify(dataset) == []


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_record_that_ends_at_a_shard_end_leaves_its_separator_for_the_next(tmp_path: Path, beyond: int) -> None:
    bases = "ACGT" * SHARD
    source = write(tmp_path / "a.fa", [("only", bases[: SHARD + beyond])])
    dataset = prepare_small([source], tmp_path / "out", PrepareOptions(valid=0))
    assert [shard.tokens for shard in dataset.split("train").shards] == ([SHARD, 1 + beyond][: 2 + beyond])
    assert [text_of(record) for record in split_records(dataset, "train")] == [bases[: SHARD + beyond]]
    assert len(rows_of(dataset)["train"]) == (2 if beyond == 1 else 1)


def test_a_prepared_folder_loads_verifies_and_may_be_moved(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fa", random_fasta(9))
    dataset = prepare([source], tmp_path / "out", PrepareOptions())
    shutil.move(tmp_path / "out", tmp_path / "moved")
    moved = load_dataset(tmp_path / "moved")
    assert moved.fingerprint == dataset.fingerprint
    assert moved.splits == dataset.splits
    assert verify(moved) == []


def test_whole_records_begin_at_their_first_base_whatever_their_letters(tmp_path: Path) -> None:
    records = [("plain", "ACGT" * 9), ("masked", "acGT" * 9), ("ambiguous", "ARGT" * 9), ("uracil", "ACGU" * 9)]
    for letters in (records[:1], records):
        folder = tmp_path / str(len(letters))
        folder.mkdir()
        dataset = prepare_small([write(folder / "a.fa", letters)], folder / "out", PrepareOptions(valid=0))
        assert {(row["record"], row["record_start"]) for row in rows_of(dataset)["train"]} == {
            (n, 0) for n, _ in letters
        }
