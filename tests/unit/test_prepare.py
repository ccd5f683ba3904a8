"""Sequences to shards: nothing lost or leaked between splits, the same bytes every time, all or nothing."""

from __future__ import annotations

import functools
import gc
import gzip
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dnascale.data import prepare as module
from dnascale.data.mapped import MappedShards
from dnascale.data.prepare import PrepareOptions, prepare, split_of
from dnascale.data.read import split_records
from dnascale.data.shards import Dataset, load_dataset
from dnascale.data.verify import verify
from dnascale.data.writer import ShardWriter
from dnascale.errors import DataError, DnascaleError, SpaceError, UsageError
from dnascale.vocab import CHARACTER

BLOCK = 512
Fasta = list[tuple[str, str]]  # header, bases


def random_fasta(seed: int, count: int = 300, genes: int = 120, longest: int = 80, letters: str = "ACGTacgtN") -> Fasta:
    """Records with a gene each, some of them empty."""
    rng = random.Random(seed)
    return [
        (f"rec{i} gene=G{rng.randrange(genes)}", "".join(rng.choices(letters, k=max(0, rng.randint(-5, longest)))))
        for i in range(count)
    ]


def write(path: Path, records: Fasta) -> str:
    path.write_text("".join(f">{header}\n{bases}\n" for header, bases in records))
    return str(path)


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


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def splits_of_groups(dataset: Dataset) -> dict[str, set[str]]:
    found = defaultdict(set)
    for split, rows in rows_of(dataset).items():
        for row in rows:
            found[row["group"]].add(split)
    return found


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of 512 tokens, two in a shard. Gives the tokens of a full shard."""
    monkeypatch.setattr(module, "ShardWriter", functools.partial(ShardWriter, block_tokens=BLOCK, shard_blocks=2))
    monkeypatch.setattr(module, "Dataset", functools.partial(Dataset, block_tokens=BLOCK))
    return 2 * BLOCK


# --- nothing is lost, nothing leaks ---


@pytest.mark.parametrize("min_length", [1, 10])
def test_every_record_and_base_comes_out_once_or_is_counted_as_dropped(
    tmp_path: Path, small_shards: int, min_length: int
) -> None:
    records = random_fasta(1)
    halves = [write(tmp_path / "a.fa", records[:140]), write(tmp_path / "b.fa", records[140:])]
    dataset = prepare(halves, tmp_path / "out", PrepareOptions(valid=0.2, test=0.1, min_length=min_length))

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


def test_shares_of_the_splits_are_those_asked_for_and_growing_one_only_adds_to_it() -> None:
    groups = [f"gene{i}" for i in range(5000)]
    counts = Counter(split_of(group, PrepareOptions(valid=0.1, test=0.3)) for group in groups)
    for split, share in (("valid", 0.1), ("test", 0.3), ("train", 0.6)):
        assert abs(counts[split] - share * 5000) < 5 * np.sqrt(5000 * share * (1 - share))
    for group in groups:
        if split_of(group, PrepareOptions(valid=0.1)) == "valid":
            assert split_of(group, PrepareOptions(valid=0.2, test=0.1)) == "valid"


def test_the_split_of_a_group_is_the_same_in_every_version() -> None:
    """Golden values: changing them moves held-out genes into other people's training data."""
    options = PrepareOptions(valid=0.3, test=0.3)
    names = ["BRCA2", "ENSG00000139618", "gene1", "é", "", "TP53"]
    assert [split_of(name, options) for name in names] == ["test", "test", "train", "train", "test", "test"]


def test_a_pattern_names_the_groups(tmp_path: Path) -> None:
    records = [(f"chr{i % 7}:{i} gene=G{i}", "ACGT") for i in range(70)]
    options = PrepareOptions(valid=0.3, group=r"^(chr\d+):")
    dataset = prepare([write(tmp_path / "a.fa", records)], tmp_path / "out", options)
    assert dataset.groups == {"pattern": 70}
    groups = splits_of_groups(dataset)
    assert set(groups) == {f"chr{i}" for i in range(7)}
    assert all(len(splits) == 1 for splits in groups.values())


# --- the same bytes ---


def test_the_same_input_twice_gives_identical_bytes_of_every_file(tmp_path: Path, small_shards: int) -> None:
    source = write(tmp_path / "a.fa", random_fasta(3))
    options = PrepareOptions(valid=0.2, soft_mask=True)
    one, other = (prepare([source], tmp_path / folder / "out", options) for folder in ("one", "other"))
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


def test_parts_of_records_tile_the_records_and_the_shards(tmp_path: Path, small_shards: int) -> None:
    rng = random.Random(6)
    lengths = [5 * small_shards + 17, 3, small_shards, 1, small_shards - 1, 2 * small_shards, 700, 699]
    records = {f"r{i}": "".join(rng.choices("ACGTacgt", k=length)) for i, length in enumerate(lengths)}
    source = write(tmp_path / "a.fa", list(records.items()))
    dataset = prepare([source], tmp_path / "out", PrepareOptions(valid=0, soft_mask=True))
    shards = dataset.split("train").shards
    assert [shard.tokens for shard in shards[:-1]] == [small_shards] * (len(shards) - 1)
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
def test_a_record_that_ends_at_a_shard_end_leaves_its_separator_for_the_next(
    tmp_path: Path, small_shards: int, beyond: int
) -> None:
    bases = "ACGT" * small_shards
    source = write(tmp_path / "a.fa", [("only", bases[: small_shards + beyond])])
    dataset = prepare([source], tmp_path / "out", PrepareOptions(valid=0))
    assert [shard.tokens for shard in dataset.split("train").shards] == ([small_shards, 1 + beyond][: 2 + beyond])
    assert [text_of(record) for record in split_records(dataset, "train")] == [bases[: small_shards + beyond]]
    assert len(rows_of(dataset)["train"]) == (2 if beyond == 1 else 1)


# --- all or nothing ---


def refused(kind: type[DnascaleError], words: str, action: Callable[[], object], folder: Path) -> None:
    """`action` raises `kind` in those words, and `folder` is as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(kind, match=words) as caught:
        action()
    assert type(caught.value) is kind
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "options", "kind", "words"),
    [
        (">a\n\n>b\n\n", {}, DataError, "no sequence is left of 2 records .2 empty sequence.: .* nothing to train on"),
        (">a\nACGT\n", {"min_length": 5}, DataError, "no sequence is left of 1 records .1 shorter than 5 bases"),
        (">a\nACGT\n", {"valid": 1e-9}, DataError, r"the valid split got none of 1 records \(--valid 1e-09\)"),
        (">a\nACGT\n", {"valid": 1 - 1e-9}, DataError, "the train split got none"),
        (">a\nACGT\n", {"valid": 0, "test": 1e-9}, DataError, r"--test 0\."),
        (">a\nACGT\n>b\nAC GT\n", {}, DataError, r"a\.fa:4:3 \(byte 13\): byte 0x20 in record 'b': white space"),
        (">a\nACGT\n", {"group": r"gene=(\w+)"}, DataError, "finds nothing in record 'a'"),
        ("", {}, DataError, "the file is empty"),
    ],
)
def test_unusable_input_is_a_data_error_and_leaves_nothing_behind(
    tmp_path: Path, text: str, options: dict[str, Any], kind: type[DnascaleError], words: str
) -> None:
    (tmp_path / "a.fa").write_text(text)
    refused(
        kind,
        words,
        lambda: prepare([str(tmp_path / "a.fa")], tmp_path / "out", PrepareOptions(**options)),
        tmp_path,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"valid": -0.1}, "--valid -0.1"),
        ({"valid": 0.5, "test": 0.5}, "--test 0.5"),
        ({"min_length": 0}, "--min-length 0"),
        ({"group": "gene"}, "parentheses"),
        ({"group": "(gene"}, "is not a regular expression"),
    ],
)
def test_impossible_options_are_usage_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PrepareOptions(**options)


def test_a_folder_that_holds_something_a_file_and_a_nameless_path_are_no_place_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.fa", [("a", "ACGT"), ("b", "ACGT")])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out, words in [
        (tmp_path / "full", "full exists and is not empty"),
        (tmp_path / "a.fa", "a.fa exists and is not empty"),
        (tmp_path / "a.fa" / "out", "cannot be written"),
        (Path(), "has no name of its own"),
    ]:
        refused(UsageError, words, functools.partial(prepare, [source], out, PrepareOptions(valid=0)), tmp_path)
    dataset = prepare([source], tmp_path / "empty", PrepareOptions(valid=0))
    assert dataset.split("train").records == 2


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_without_write_permission_is_a_usage_error(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fa", [("a", "ACGT")])
    parent = tmp_path / "closed"
    parent.mkdir(mode=0o500)
    refused(
        UsageError, "cannot be written", lambda: prepare([source], parent / "out", PrepareOptions(valid=0)), tmp_path
    )


@pytest.mark.parametrize("change", ["appended", "rewritten", "removed"])
def test_a_source_that_changes_while_it_is_read_is_a_data_error(tmp_path: Path, change: str) -> None:
    source = tmp_path / "a.fa"
    write(source, [(f"r{i}", "ACGT") for i in range(50)])
    text = source.read_text()

    def interfere(what: str, _bases: int) -> None:
        if what == "reading" and change == "appended":
            source.write_text(text + ">late\nACGT\n")
        elif what == "reading" and change == "rewritten":
            source.write_text(text.replace("A", "T"))
            os.utime(source, ns=(0, source.stat().st_mtime_ns + 1_000_000))
        elif what == "reading":
            source.unlink(missing_ok=True)

    with pytest.raises(DataError, match=r"a\.fa (changed while it was read|cannot be read a second time)"):
        prepare([str(source)], tmp_path / "out", PrepareOptions(valid=0), progress=interfere)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.fa"}


@pytest.mark.parametrize("when", ["reading", "writing"])
def test_an_interrupted_run_leaves_nothing_behind_and_can_be_repeated(tmp_path: Path, when: str) -> None:
    source = write(tmp_path / "a.fa", random_fasta(7))

    def interrupt(what: str, _bases: int) -> None:
        if what == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "out", PrepareOptions(), progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["a.fa"]
    prepare([source], tmp_path / "out", PrepareOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fa", "out"]


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fa", random_fasta(7))
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, alive = (tmp_path / f".out.partial-{pid}" for pid in (int(ended.stdout), os.getppid()))
    mine = tmp_path / "out.partial"
    for folder in (dead, alive, mine):
        folder.mkdir()
        (folder / "train.spool").write_bytes(b"old")
    prepare([source], tmp_path / "out", PrepareOptions())
    assert {path.name for path in tmp_path.iterdir()} == {"a.fa", "out", alive.name, mine.name}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fails", ["spool", "shard", "sidecar"])
def test_a_file_that_cannot_grow_is_a_space_error_without_noise(tmp_path: Path, fails: str) -> None:
    """The kernel refuses writes beyond a file size limit, wherever they come from."""
    resource = pytest.importorskip("resource")
    count, length = {"spool": (300, 200), "shard": (1, 39_500), "sidecar": (2000, 1)}[fails]
    rng = random.Random(8)
    source = write(tmp_path / "a.fa", [(f"{rng.getrandbits(400):x}", "A" * length) for _ in range(count)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    reached: list[str] = []

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
        try:
            prepare([source], tmp_path / "out", PrepareOptions(valid=0), progress=lambda what, _: reached.append(what))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    refused(SpaceError, "no space left to write .*Nothing was kept", run, tmp_path)
    assert reached.count("writing") == (0 if fails == "spool" else count)
    gc.collect()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux namespaces")
def test_a_full_disk_gives_exit_code_5_one_sentence_and_an_empty_folder(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    source = write(tmp_path / "a.fa", [(f"r{i}", "ACGT" * 500) for i in range(100)])
    mount = f"mount -t tmpfs -o size=250k tmpfs '{disk}' || exit 99"
    command = f"'{sys.executable}' -m dnascale prepare '{source}' --out '{disk}/out' --valid 0; echo $?; ls -A '{disk}'"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount}; {command}"], capture_output=True, text=True, check=False
    )
    if done.returncode == 99 or "unshare:" in done.stderr:
        pytest.skip("may not mount here")
    assert done.stdout == "5\n"
    assert re.fullmatch(r"dnascale: error: no space left to write \S+: [\d,]+ bytes are free\. [^\n]+\n", done.stderr)


def test_a_prepared_folder_loads_verifies_and_may_be_moved(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fa", random_fasta(9))
    dataset = prepare([source], tmp_path / "out", PrepareOptions())
    shutil.move(tmp_path / "out", tmp_path / "moved")
    moved = load_dataset(tmp_path / "moved")
    assert moved.fingerprint == dataset.fingerprint
    assert moved.splits == dataset.splits
    assert verify(moved) == []
