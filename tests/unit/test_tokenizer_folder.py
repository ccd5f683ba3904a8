"""`dnascale tokenizer`: learned from the training split alone, kept in a folder that others can load, named in `prepare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnascale.cli import main
from dnascale.data.read import split_records
from dnascale.data.shards import Dataset, load_dataset
from dnascale.data.tokenizer import train_tokenizer
from dnascale.data.verify import verify
from dnascale.errors import DataError, UsageError
from dnascale.vocab import load_vocabulary


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def folder(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "tok"
    assert run("tokenizer", "train", human_cds.folder, "--vocab-size", 200, "--max-bases", 300_000, "--out", out) == 0
    return out


def test_the_folder_is_a_hugging_face_tokenizer_and_a_vocabulary_that_agree(folder: Path, human_cds: Dataset) -> None:
    from transformers import AutoTokenizer

    vocabulary = load_vocabulary(str(folder))
    loaded = AutoTokenizer.from_pretrained(folder)
    assert len(loaded) == len(vocabulary) == 200
    assert loaded.model_max_length > 10**9
    for record in split_records(human_cds, "valid", 50_000):
        text = vocabulary.letters(record)
        assert loaded(text)["input_ids"] == vocabulary.encode(text)
        assert loaded(text.lower())["input_ids"] == vocabulary.encode(text)


def test_it_says_what_it_was_learned_from(folder: Path, human_cds: Dataset) -> None:
    about = json.loads((folder / "vocabulary.json").read_text())["learned_from"]
    assert about["fingerprint"] == human_cds.fingerprint
    assert about["split"] == "train"
    assert 299_000 < about["bases"] <= 300_000


def test_no_more_bases_are_learned_from_than_said(tmp_path: Path) -> None:
    """Also where tokens are of several bases."""
    source = tmp_path / "genes.fa"
    source.write_text("".join(f">{n}\n{'ACGGTCATTGCA' * 40}{'GATTACA' * n}\n" for n in range(1, 40)))
    assert run("prepare", source, "--out", tmp_path / "kmers", "--tokenizer", "kmer:6", "--valid", "0") == 0
    train_tokenizer(load_dataset(tmp_path / "kmers"), 40, tmp_path / "tok", max_bases=5_000)
    learned = json.loads((tmp_path / "tok" / "vocabulary.json").read_text())["learned_from"]
    assert 4_000 < learned["bases"] <= 5_000


def test_data_prepared_with_it_are_whole_and_hold_the_same_letters(
    folder: Path, human_cds: Dataset, tmp_path: Path
) -> None:
    assert run("prepare", "builtin:human-cds", "--tokenizer", folder, "--out", tmp_path / "data") == 0
    dataset = load_dataset(tmp_path / "data")
    assert dataset.vocabulary == load_vocabulary(str(folder))
    assert verify(dataset) == []
    for split in ("train", "valid"):
        mine, theirs = (sorted(r.tobytes() for r in split_records(one, split)) for one in (dataset, human_cds))
        assert mine == theirs
        assert dataset.splits[split].composition == human_cds.splits[split].composition
        assert dataset.splits[split].tokens < 0.5 * human_cds.splits[split].tokens


def test_the_same_data_give_the_same_folder(folder: Path, human_cds: Dataset, tmp_path: Path) -> None:
    train_tokenizer(human_cds, 200, tmp_path / "again", 300_000)
    for path in sorted(folder.iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_inspect_counts_tokens_by_length(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokenizer", "inspect", folder, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert sum(about["longer_tokens"].values()) == 200 - 23
    assert about["sha256"] == load_vocabulary(str(folder)).digest
    assert run("tokenizer", "inspect", "kmer:3") == 0
    assert "64" in capsys.readouterr().out


def test_what_cannot_be_learned_is_refused_and_leaves_nothing(human_cds: Dataset, tmp_path: Path) -> None:
    for size in (23, 40_000):
        with pytest.raises(UsageError, match="--vocab-size"):
            train_tokenizer(human_cds, size, tmp_path / "tok")
    with pytest.raises(DataError, match=r"teach only \d+ tokens"):
        train_tokenizer(human_cds, 5_000, tmp_path / "tok", max_bases=2_000)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError):
        train_tokenizer(human_cds, 100, tmp_path / "full", max_bases=20_000)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
