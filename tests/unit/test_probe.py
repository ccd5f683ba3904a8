"""`dnascale probe`: what is planted in embeddings is found, and what groups alone tell is not."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnascale.cli import main
from dnascale.errors import DataError
from dnascale.evaluate.probe import probe, read_embeddings

ROWS, WIDTH = 240, 12


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def groups_of(count: int) -> list[str]:
    return [f"gene{row % count}" for row in range(ROWS)]


def test_two_classes_that_one_direction_tells_apart_are_told_apart(values: np.ndarray) -> None:
    labels = np.where(values[:, 3] > 0, "coding", "other").tolist()
    found = probe(values, labels, groups_of(40))
    assert (found.task, found.rows, found.groups, found.classes) == ("classes", ROWS, 40, ["coding", "other"])
    assert found.scores["AUROC"].value > 0.97
    assert found.scores["AUROC"].low <= found.scores["AUROC"].value <= found.scores["AUROC"].high
    assert probe(values, labels, groups_of(40)) == found


def test_labels_without_a_sign_in_the_embeddings_are_guessed(values: np.ndarray) -> None:
    labels = np.random.default_rng(1).choice(["a", "b"], ROWS).tolist()
    score = probe(values, labels, groups_of(60)).scores["AUROC"]
    assert 0.35 < score.value < 0.65
    assert score.low < 0.5 < score.high


def test_what_only_the_group_tells_is_not_found_when_groups_are_held_out() -> None:
    """Each gene has an embedding and a label of its own; relatives in training would give it away."""
    rng = np.random.default_rng(2)
    of_gene, label_of_gene = rng.normal(size=(24, 60)), rng.permutation(["a", "b"] * 12)
    gene = np.arange(ROWS) % 24
    values = (of_gene[gene] + 0.01 * rng.normal(size=(ROWS, 60))).astype(np.float32)
    labels = label_of_gene[gene].tolist()
    apart = probe(values, labels, [f"gene{one}" for one in gene]).scores["accuracy"].value
    leaking = probe(values, labels, [str(row) for row in range(ROWS)]).scores["accuracy"].value
    assert leaking > 0.95
    assert apart < 0.75


def test_several_classes(values: np.ndarray) -> None:
    labels = np.array(["low", "middle", "high"])[np.digitize(values[:, 0], [-0.4, 0.4])].tolist()
    found = probe(values, labels, groups_of(40))
    assert list(found.scores) == ["accuracy", "balanced accuracy"]
    assert found.scores["balanced accuracy"].value > 0.8


def test_numbers_are_regressed_upon(values: np.ndarray) -> None:
    truth = 2 * values[:, 1] - values[:, 5] + 0.1 * np.random.default_rng(3).normal(size=ROWS)
    found = probe(values, [f"{one:.6f}" for one in truth], groups_of(40))
    assert found.task == "numbers"
    assert found.scores["R2"].value > 0.98
    assert found.scores["Spearman"].value > 0.98
    by_chance = probe(values, [f"{one:.6f}" for one in np.random.default_rng(4).normal(size=ROWS)], groups_of(40))
    assert by_chance.scores["R2"].value < 0.1


@pytest.mark.parametrize(
    ("labels", "count", "sentence"),
    [
        (["a"] * ROWS, 40, "all 240 labels are a"),
        (["a", "b"] * (ROWS // 2), 3, "3 groups cannot be divided into 5 folds"),
        (["a"] * 6 + ["b"] * (ROWS - 6), 40, "has none of it to learn from"),
        (["1", "2", "inf"] * (ROWS // 3), 40, "the label inf is no finite number"),
        ([f"species{row % 60}" for row in range(ROWS)], 240, "no class has more than 4 sequences, fewer than 5 folds"),
    ],
)
def test_too_little_is_a_sentence(values: np.ndarray, labels: list[str], count: int, sentence: str) -> None:
    groups = groups_of(count)
    if len(set(labels)) == 2 and count == 40:
        groups = ["one" if label == "a" else f"gene{row % 39}" for row, label in enumerate(labels)]
    with pytest.raises(DataError, match=sentence):
        probe(values, labels, groups)


def test_embeddings_that_are_not_finite_are_refused(values: np.ndarray) -> None:
    values[4] = np.nan
    with pytest.raises(DataError, match="1 embeddings are not finite"):
        probe(values, ["a", "b"] * (ROWS // 2), groups_of(40))


def write(folder: Path, values: np.ndarray, names: list[str]) -> tuple[Path, Path]:
    """The two kinds of file that `dnascale embed` writes."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    parquet, npy = folder / "e.parquet", folder / "e.npy"
    pq.write_table(
        pa.table({"name": names, "start": [0] * len(names), "end": [9] * len(names), "embedding": vectors}), parquet
    )
    np.save(npy, values)
    npy.with_suffix(".tsv").write_text("name\tstart\tend\n" + "".join(f"{name}\t0\t9\n" for name in names))
    return parquet, npy


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_the_command_joins_by_name_and_reads_both_kinds_of_file(
    values: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"s{row}" for row in range(ROWS)]
    parquet, npy = write(tmp_path, values, names)
    for one, other in zip(read_embeddings(parquet), read_embeddings(npy), strict=True):
        assert np.array_equal(one, other)
    labels = tmp_path / "labels.tsv"
    lines = [f"{name}\t{'x' if values[row, 2] > 0 else 'y'}\tg{row % 30}\n" for row, name in enumerate(names)]
    lines[7] = "s7\t\tg7\n"
    labels.write_text("name\tkind\tgene\n" + "".join(reversed(lines[5:])))
    code, out, _ = said(capsys, "probe", parquet, labels, "--label", "kind", "--group", "gene", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["rows"], found["without_label"], found["groups"]) == (ROWS - 6, 6, 30)
    assert found["scores"]["AUROC"]["value"] > 0.97
    assert said(capsys, "probe", npy, labels, "--label", "kind", "--group", "gene", "--json")[1] == out
    code, out, _ = said(capsys, "probe", npy, labels, "--label", "kind")
    assert "234 sequences in 234 groups, 5 folds, 2 classes (x, y); 6 without a label" in out


def test_what_is_written_for_a_missing_value_is_no_label_and_a_missing_group_is_refused(
    values: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet, _ = write(tmp_path, values, [f"s{row}" for row in range(ROWS)])
    labels = tmp_path / "labels.csv"
    rows = [f"s{row},{'NA' if row % 10 == 0 else values[row, 1]},g{row % 30}\n" for row in range(ROWS)]
    labels.write_text("name,label,gene\n" + "".join(rows))
    code, out, _ = said(capsys, "probe", parquet, labels, "--group", "gene", "--json")
    found = json.loads(out)
    assert (code, found["task"], found["without_label"]) == (0, "numbers", ROWS // 10)
    rows[5] = f"s5,{values[5, 1]},\n"
    labels.write_text("name,label,gene\n" + "".join(rows))
    assert "has no gene for s5" in said(capsys, "probe", parquet, labels, "--group", "gene")[2]


def test_few_groups_are_enough_where_each_part_has_two(values: np.ndarray) -> None:
    found = probe(values, [f"{one:.6f}" for one in values[:, 1]], groups_of(3), folds=3)
    assert found.scores["R2"].value > 0.9
    with pytest.raises(DataError, match="a training part has a single group"):
        probe(values, [f"{one:.6f}" for one in values[:, 1]], groups_of(2), folds=2)


def test_bad_input_is_a_sentence(values: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet, npy = write(tmp_path, values, ["same"] * ROWS)
    labels = tmp_path / "labels.csv"
    labels.write_text("name,label\nother,a\n")
    for words, code, sentence in [
        ((parquet, labels), 3, "several vectors of same"),
        ((tmp_path / "none.parquet", labels), 3, "holds no embeddings of `dnascale embed`"),
        ((labels, labels), 2, "is neither .parquet nor .npy"),
        ((parquet, labels, "--label", "kind"), 2, "has no column kind: it has name, label"),
        ((parquet, tmp_path / "none.csv"), 3, "none.csv"),
        ((parquet, npy), 2, "is none of .tsv, .csv, .parquet"),
    ]:
        found, _, error = said(capsys, "probe", *words)
        assert (found, sentence in error) == (code, True), error
    parquet, _ = write(tmp_path, values, [f"s{row}" for row in range(ROWS)])
    assert "no name of" in said(capsys, "probe", parquet, labels)[2]
