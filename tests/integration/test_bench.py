"""`dnascale bench`: rows of the real step, and what is said of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jobs import TINY, Outcome, dnascale, launch

from dnascale.bench.throughput import COLUMNS
from dnascale.data.shards import Dataset

SMALL = [
    word for one in TINY if not one.startswith(("log.", "evaluation.", "train.global")) for word in ("--override", one)
]


@pytest.fixture(scope="module")
def measured(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[dict[str, Any]]]:
    """Two micro-batches on one process and two, and a model that no device has room for."""
    import sys

    out = tmp_path_factory.mktemp("bench") / "rows.jsonl"
    words = [
        "bench",
        "run",
        "nano",
        "--data",
        str(human_cds.folder),
        *SMALL,
        "--rounds",
        "3",
        "--seconds",
        "0.05",
        "--warm-up",
        "2",
    ]
    command = [sys.executable, "-m", "dnascale", *words, "--out", str(out)]
    outcome = launch([*command, "--grid", "train.micro_batch_tokens=512,1024"])
    assert launch([*command, "-n", "2", "--grid", "train.engine=plain"]).code == 0
    return outcome, [json.loads(line) for line in out.read_text().splitlines()]


def test_a_row_is_the_step_of_training_with_its_numbers(measured: tuple[Outcome, list[dict[str, Any]]]) -> None:
    outcome, rows = measured
    assert outcome.code == 0, outcome.output
    assert [row["name"] for row in rows] == [
        "nano train.micro_batch_tokens=512", "nano train.micro_batch_tokens=1024", "nano train.engine=plain -n 2",
    ]  # fmt: skip
    assert [row["global_batch_tokens"] for row in rows] == [512, 1024, 1024]
    assert [(row["devices"], row["engine"]) for row in rows] == [(1, "plain"), (1, "plain"), (2, "ddp")]
    for row in rows:
        assert set(row) == set(COLUMNS)
        assert row["parameters"] == 63_319
        assert row["lowest"] <= row["tokens_per_second"] <= row["highest"]
        assert row["tflops"] == pytest.approx(row["tokens_per_second"] * row["flops_per_token"] / 1e12)
        assert row["samples_per_second"] == pytest.approx(row["tokens_per_second"] / 64)
        assert 0 <= row["data_wait"] < 1
        assert 0.1 < row["memory_gb"] < 10
        assert row["config"]["model"]["layers"] == 2
        assert {"torch", "transformers", "dnascale"} <= set(row["versions"])
    assert "nano train.micro_batch_tokens=512" in outcome.output


def test_a_row_that_cannot_be_measured_says_why_and_others_are(human_cds: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    grid = ["--grid", "train.engine=plain,nothing.json", "--rounds", "1", "--seconds", "0.01", "--warm-up", "1"]
    outcome = dnascale("bench", "run", "nano", "--data", human_cds.folder, *SMALL, *grid, "--out", out)
    assert outcome.code == 0, outcome.output
    good, bad = (json.loads(line) for line in out.read_text().splitlines())
    assert good["engine"] == "plain"
    assert bad["exit_code"] == 2
    assert "nothing.json" in bad["error"]
    assert dnascale("bench", "validate", out).code == 0


def write(path: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    path.write_text("".join(json.dumps(row | changes) + "\n" for row in rows))
    return path


def test_two_files_are_compared_row_by_row(measured: tuple[Outcome, list[dict[str, Any]]], tmp_path: Path) -> None:
    _, rows = measured
    one = write(tmp_path / "one.jsonl", rows[:2])
    twice = dict.fromkeys(("tokens_per_second", "lowest", "highest"), 2 * rows[0]["highest"])
    other = write(tmp_path / "other.jsonl", [rows[0] | twice, rows[2]])
    outcome = dnascale("bench", "compare", one, other)
    assert outcome.code == 0, outcome.output
    assert f"{2 * rows[0]['highest'] / rows[0]['tokens_per_second']:.3f}" in outcome.output
    assert "yes" in outcome.output
    assert f"only in {one}: nano train.micro_batch_tokens=1024" in outcome.output
    assert f"only in {other}: nano train.engine=plain -n 2" in outcome.output
    assert "| nano train.micro_batch_tokens=512 |" in dnascale("bench", "table", "--markdown", one).output


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mfu": 1.7}, "mfu is 1.7"), ({"tokens_per_second": "fast"}, "tokens_per_second is 'fast'"),
        ({"lowest": 1e12}, "tokens_per_second is not between lowest and highest"),
    ],
)  # fmt: skip
def test_a_contribution_is_checked(
    measured: tuple[Outcome, list[dict[str, Any]]], tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    path = write(tmp_path / "rows.jsonl", measured[1][:1])
    assert dnascale("bench", "validate", path).code == 0
    outcome = dnascale("bench", "validate", write(path, measured[1][:1], **changes))
    assert outcome.code == 3
    assert f"{path}:1: {sentence}" in outcome.output


def test_every_row_of_a_contribution_is_looked_at(
    measured: tuple[Outcome, list[dict[str, Any]]], tmp_path: Path
) -> None:
    rows = measured[1]
    broken = [rows[0] | {"device": 7}, rows[1] | {"lowest": 1e12}, {k: v for k, v in rows[2].items() if k != "mfu"}]
    outcome = dnascale("bench", "validate", write(tmp_path / "rows.jsonl", broken))
    for number, sentence in enumerate(("device is 7", "tokens_per_second is not between", "mfu is missing"), start=1):
        assert f"rows.jsonl:{number}: {sentence}" in outcome.output


def test_the_same_windows_again_and_again_read_nothing(human_cds: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = [
        "bench",
        "run",
        "nano",
        "--data",
        human_cds.folder,
        *SMALL,
        "--rounds",
        "2",
        "--seconds",
        "0.05",
        "--warm-up",
        "2",
    ]
    outcome = dnascale(*words, "--synthetic", "--out", out)
    assert outcome.code == 0, outcome.output
    (row,) = (json.loads(line) for line in out.read_text().splitlines())
    assert row["synthetic"]
    assert row["name"] == "nano --synthetic"
    assert row["data_wait"] < 0.001


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype html>")])
def test_rows_are_drawn(
    measured: tuple[Outcome, list[dict[str, Any]]], tmp_path: Path, suffix: str, begins: bytes
) -> None:
    rows = write(tmp_path / "rows.jsonl", [*measured[1], {"name": "too large", "error": "out of memory"}])
    out = tmp_path / f"plot.{suffix}"
    outcome = dnascale("bench", "plot", rows, "--out", out)
    assert outcome.code == 0, outcome.output
    content = out.read_bytes()
    assert content.startswith(begins)
    if suffix == "html":
        text = content.decode()
        assert "<svg" in text
        assert "http://" not in re.sub(
            r'xmlns[:a-z]*="[^"]*"|http://(www\.w3\.org|purl\.org|creativecommons\.org|matplotlib\.org)[^"<\s]*',
            "",
            text,
        )
        for row in measured[1]:
            assert f"<td>{row['tokens_per_second']:,.0f}</td>" in text
        assert "out of memory" in text


def test_rows_that_are_not_whole_are_a_sentence_for_every_command(tmp_path: Path) -> None:
    torn = write(tmp_path / "torn.jsonl", [{"name": "a"}])
    picture = tmp_path / "picture.jsonl"
    picture.write_bytes(b"\x89PNG\r\n")
    for words in (("table",), ("compare", torn), ("plot",), ("validate",)):
        assert f"{torn}:1: parameters is missing" in dnascale("bench", *words, torn).output
        assert dnascale("bench", *words, picture).code == 3
    outcome = dnascale("plan", "nano", "--rows", torn, "--hardware", "H100", "data.path=x", "train.steps=9")
    assert f"{torn}:1: parameters is missing" in outcome.output
    outcome = dnascale("bench", "run", "nano", *SMALL, "--out", tmp_path / "no" / "rows.jsonl")
    assert (outcome.code, "rows.jsonl cannot be written" in outcome.error) == (2, True), outcome.output
    assert dnascale("bench", "run", "nanno", *SMALL, "--out", tmp_path / "rows.jsonl").code == 2
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_plot_that_cannot_be_is_a_sentence(measured: tuple[Outcome, list[dict[str, Any]]], tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", measured[1])
    assert "is none of .png, .svg, .html" in dnascale("bench", "plot", rows, "--out", tmp_path / "plot.doc").error
    nothing = write(tmp_path / "nothing.jsonl", [{"name": "too large", "error": "out of memory"}])
    assert (
        dnascale("bench", "plot", nothing, "--out", tmp_path / "plot.png").error
        == "no row has a rate: nothing to draw."
    )


def test_each_part_of_a_step_is_measured_alone(human_cds: Dataset, tmp_path: Path) -> None:
    words = [
        "bench",
        "probe",
        "nano",
        "--data",
        human_cds.folder,
        *SMALL,
        "--override",
        f"run.dir={tmp_path / 'run'}",
        "-n",
        "2",
    ]
    outcome = dnascale(*words, "--json")
    assert outcome.code == 0, outcome.output
    found = {one["what"]: one for one in json.loads(outcome.output)}
    assert list(found) == [
        "matrix product, fp32", "matrix product, bf16", "copy, read and written", "windows of 64 read, shuffled", "checkpoint of 0.00 GB",
        "all-reduce, 2 processes",
    ]  # fmt: skip
    for one in found.values():
        assert 0 < one["lowest"] <= one["value"] <= one["highest"]
    assert list(tmp_path.iterdir()) == []  # what was saved is gone


def test_what_is_no_row_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    assert dnascale("bench", "table", path).error == f"{path}:1 is no row of `dnascale bench run`."
    assert dnascale("bench", "table", tmp_path / "none").code == 2
