"""Data sets of the Hub, from local folders: splits, columns, what is refused; and no code of a data set ever runs."""

from __future__ import annotations

import io
import pickle
import socket
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnascale.data import sources
from dnascale.data.sources import Input, ReadOptions, ReadReport, Record, hub, locate
from dnascale.errors import DataError, UsageError

datasets = pytest.importorskip("datasets")
TRAIN = pa.table({"id": ["a", "b", "c"], "sequence": ["ACGT", None, "acgtNN"], "gene": ["X", "Y", "X"]})
TEST = pa.table({"id": ["d"], "sequence": ["GGGG"], "gene": ["Z"]})


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def read(location: str, **options: Any) -> tuple[list[Record], ReadReport]:
    report = ReadReport(location)
    (input,) = [Input(location, location, format="hf")]
    return list(sources.read(input, ReadOptions(**options), report)), report


def named(records: list[Record]) -> list[tuple[str, bytes]]:
    return [(record.name, record.bases[:]) for record in records]


def test_a_folder_of_parquet_is_streamed(folder: Path) -> None:
    pq.write_table(TRAIN, folder / "train.parquet")
    records, report = read(f"hf://{folder}")
    assert named(records) == [("a", b"ACGT"), ("c", b"acgtNN")]
    assert records[1].fields == {"gene": "X"}
    assert (report.format, report.records, report.bases) == ("hf", 2, 10)
    assert "1 rows without a value" in report.warnings[0]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_folder_of_text_tables_is_streamed(folder: Path, kind: str) -> None:
    frame = TRAIN.to_pandas()
    path = folder / f"train.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_json(path, orient="records", lines=True)
    assert named(read(f"hf://{folder}")[0]) == [("a", b"ACGT"), ("c", b"acgtNN")]


def test_a_saved_data_set_is_read(folder: Path) -> None:
    saved = datasets.DatasetDict({"train": datasets.Dataset(TRAIN), "test": datasets.Dataset(TEST)})
    saved.save_to_disk(folder)
    saved["test"].save_to_disk(folder / "alone")
    assert named(read(f"hf://{folder}:test")[0]) == named(read(f"hf://{folder}/alone")[0]) == [("d", b"GGGG")]


def test_of_several_splits_some_must_be_named(folder: Path) -> None:
    pq.write_table(TRAIN, folder / "train.parquet")
    pq.write_table(TEST, folder / "test.parquet")
    with pytest.raises(UsageError, match=r"has several splits \(train, test\): name one, as in .*:train"):
        read(f"hf://{folder}")
    with pytest.raises(UsageError, match="has no split 'valid'; there are train, test"):
        read(f"hf://{folder}:valid")
    assert named(read(f"hf://{folder}:test")[0]) == [("d", b"GGGG")]
    records = read(f"hf://{folder}:test+train")[0]
    assert named(records) == [("d", b"GGGG"), ("a", b"ACGT"), ("c", b"acgtNN")]
    assert [record.line for record in records] == [1, 2, 4]


def test_the_column_can_be_named_and_bad_rows_are_placed(folder: Path) -> None:
    pq.write_table(pa.table({"cds": ["ACGTAC", "GGG-GG"], "cdna": ["A" * 9, "C" * 9]}), folder / "train.parquet")
    assert named(read(f"hf://{folder}", column="cdna")[0]) == [("row-1", b"A" * 9), ("row-2", b"C" * 9)]
    with pytest.raises(DataError, match=":2:1: '-', letter 4 of record 'row-2'"):
        read(f"hf://{folder}", column="cds")


def test_the_digest_is_of_names_and_bases(folder: Path) -> None:
    pq.write_table(TRAIN, folder / "train.parquet")
    first = read(f"hf://{folder}")[1].sha256
    pq.write_table(TRAIN, folder / "train.parquet", compression="zstd")
    assert read(f"hf://{folder}")[1].sha256 == first
    pq.write_table(TRAIN.slice(0, 2), folder / "train.parquet")
    assert read(f"hf://{folder}")[1].sha256 != first


def test_a_script_is_not_run(folder: Path, tmp_path: Path) -> None:
    pq.write_table(TRAIN, folder / "train.parquet")
    (folder / "set.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    with pytest.raises(DataError, match="it is a program, which is not run"):
        read(f"hf://{folder}")
    assert not (tmp_path / "pwned").exists()


def test_a_pickle_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    """WebDataset's reader of `datasets` decodes members by their names, pickles among them."""

    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "pwned"), "w")

    for name in ("x.pyd", "x.pickle"):
        with tarfile.open(folder / "train.tar", "w") as tar:
            content = pickle.dumps(Evil())
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        with pytest.raises(DataError, match="no data set of tables but of webdataset"):
            read(f"hf://{folder}")
    assert not (tmp_path / "pwned").exists()


def test_files_of_sequences_are_left_to_our_readers(folder: Path) -> None:
    (folder / "train.fasta").write_text(">a\nACGT\n")
    with pytest.raises(DataError, match="name its files instead"):
        read(f"hf://{folder}")


def test_an_empty_or_absent_folder_is_a_sentence(folder: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(f"hf://{folder}")
    with pytest.raises(DataError, match="there is no folder"):
        read(f"hf://{folder}/none")


def test_a_link_that_leads_nowhere_is_a_sentence_that_names_it(folder: Path) -> None:
    pq.write_table(TRAIN, folder / "train.parquet")
    (folder / "more.parquet").symlink_to(folder / "gone")
    with pytest.raises(
        DataError, match=rf"hf://{folder}: {folder}/more.parquet is a link to something that does not exist"
    ):
        locate.find([f"hf://{folder}"])


@pytest.mark.parametrize("location", ["hf://", "hf://onlyname", "hf://a/b/c/d", "hf://a/b:", "hf://a/b@x@y"])
def test_what_names_no_data_set_is_explained(location: str) -> None:
    with pytest.raises(UsageError, match="hf://OWNER/NAME"):
        read(location)


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("hf://MichelNivard/Human-genome-CDS-GRCh38", ("MichelNivard/Human-genome-CDS-GRCh38", None, None, None)),
        ("hf://a/b@v1.0/config:train", ("a/b", "v1.0", "config", "train")),
        ("hf://a/b@refs%2Fpr%2F1", ("a/b", "refs/pr/1", None, None)),
        ("hf://a/b:train+test", ("a/b", None, None, "train+test")),
        ("hf://a/b/config", ("a/b", None, "config", None)),
    ],
)
def test_the_parts_of_a_location(location: str, parts: tuple[str | None, ...]) -> None:
    place = hub._parsed(location)
    assert (place.path, place.revision, place.config, place.split) == parts


def test_a_file_of_the_hub_is_no_data_set() -> None:
    assert not locate.is_hub("hf://datasets/a/b/train.parquet")
    assert locate.is_hub("hf://a/b")


def test_without_a_network_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(DataError, match="check the name and the network") as caught:
        read("hf://nobody/nothing")
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'dnascale\[datasets\]'"):
        read(f"hf://{folder}")
