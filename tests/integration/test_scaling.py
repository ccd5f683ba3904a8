"""benchmarks/scaling.py: the model of larger clusters, and the comparison of one process and two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dnascale.data.shards import Dataset

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scaling.py"


def test_the_model_is_printed_with_the_bandwidths_it_stands_on() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--predict"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 GPUs a node, 300 GB/s inside, 40 GB/s a GPU between nodes" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| base", "| large"))]
    assert len(rows) == 2 * 4 * 3


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_one_process_and_two_are_compared(human_cds: Dataset, tmp_path: Path, engine: str) -> None:
    if engine != "ddp":
        pytest.importorskip("deepspeed")
    out = tmp_path / "rows.jsonl"
    options = ["--engines", engine, "--steps", "4", "--rounds", "1", "--batch", "4096", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(human_cds.folder), *options], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["one"] > 0
    assert row["two"] > 0
    assert row["apart"] > 0
    assert row["efficiency"] == pytest.approx(row["two"] / row["one"] / 2)
    assert 0 < row["predicted"] < 1
    assert f"| {engine} | " in done.stdout


def test_the_page_shows_what_the_model_says() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--predict"], capture_output=True, text=True)
    table = done.stdout[done.stdout.index("| model") :].strip()
    page = SCRIPT.parents[1] / "docs" / "explanation" / "communication.md"
    assert table in page.read_text()
