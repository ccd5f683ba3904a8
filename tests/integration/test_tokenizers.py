"""k-mers and learned tokens end to end through the command line: prepare, train, evaluate, export, load without dnascale."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import dnascale, metrics, train
from test_after_training import LOAD_WITHOUT_DNASCALE

from dnascale.data.shards import load_dataset
from dnascale.runs import Run


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences with repeats of pieces, lower case and a few other letters."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("tokens") / "some.fa"
    pieces = ["ATGGCC", "GATTACA", "ccctgg", "TGCAAG", "ACGTACGTAC", "tt", "G", "CAG"]
    with path.open("w") as file:
        for number in range(150):
            letters = (
                "".join(rng.choice(pieces, 120)) + ("NNR" if number % 9 == 0 else "") + "".join(rng.choice(pieces, 20))
            )
            file.write(f">record{number}\n{letters}\n")
    return path


@pytest.fixture(scope="module", params=["kmer:6", "kmer:3:overlap", "bpe"])
def run(request: pytest.FixtureRequest, fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tokenizer = request.param
    if tokenizer == "bpe":
        tokenizer = str(folder / "tok")
        for words in (
            ["prepare", fasta, "--out", folder / "letters"],
            ["tokenizer", "train", folder / "letters", "--vocab-size", "150", "--out", tokenizer],
        ):
            outcome = dnascale(*words)
            assert outcome.code == 0, outcome.output
    outcome = dnascale("prepare", fasta, "--soft-mask", "--tokenizer", tokenizer, "--out", folder / "data")
    assert outcome.code == 0, outcome.output
    dataset = load_dataset(folder / "data")
    options = ["train.steps=2", "masking.repeat_weight=0.5", "model.context=32"]
    if request.param != "bpe":
        options.append("masking.reverse_complement=true")
    train(folder / "run", dataset, *options)
    return folder / "run"


def test_training_and_evaluation_tell_nats_per_base(run: Path) -> None:
    dataset = load_dataset(run.parent / "data")
    lines = metrics(run)
    assert len(lines) == 2
    assert all(0.2 < line["nats_per_base"] < 3 for line in lines)
    assert 0.2 < metrics(run, "valid")[-1]["valid_loss"] < 3
    outcome = dnascale("eval", str(run), "--json")
    assert outcome.code == 0, outcome.output
    result = json.loads(outcome.output)
    valid = dataset.splits["valid"]
    letters = sum(valid.composition[base] for base in "ACGT")
    assert result["model"]["bases"] == letters
    assert {b["bases"] for b in result["baselines"]} == {letters}
    assert 0.2 < result["model"]["nats_per_base"] < 3
    if dataset.vocabulary.one_base_a_token:
        assert result["model"]["tokens"] == letters
        assert set(result["model"]["accuracy_by_base"]) == set("ACGT")
    else:
        assert result["model"]["tokens"] < letters / 2
        assert result["model"]["accuracy_by_base"] == {}
    shown = dnascale("eval", str(run))
    assert shown.code == 0, shown.output
    assert f"{letters:,} bases of the valid split" in shown.output


def test_the_exported_folder_gives_the_same_logits_on_text_without_dnascale_or_the_data(
    run: Path, tmp_path: Path
) -> None:
    hidden = run.parent / "data-elsewhere"
    (run.parent / "data").rename(hidden)  # exporting needs the run alone
    try:
        outcome = dnascale("export", str(run), str(tmp_path / "model"))
    finally:
        hidden.rename(run.parent / "data")
    assert outcome.code == 0, outcome.output
    sequence = "atgGCCTTNNACGTacgtRYKGATTACAGATT[MASK]ACGTTGCAGATTACATGG" * 2
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_DNASCALE, tmp_path / "model", sequence],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = Run.open(run)
    ids = torch.tensor([opened.vocabulary().encode(sequence)])
    assert ids.max() >= opened.vocabulary().first_long
    with torch.no_grad():
        expected = opened.model()(input_ids=ids).logits[0]
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1])["logits"])
    # Another process may use another number of threads, so sums may be taken in another order.
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_run_goes_on_from_its_checkpoint_and_refuses_data_of_another_tokenizer(
    run: Path, fasta: Path, tmp_path: Path
) -> None:
    outcome = dnascale("prepare", fasta, "--soft-mask", "--tokenizer", "kmer:4", "--out", tmp_path / "data")
    assert outcome.code == 0, outcome.output
    (run / "vocabulary.json").rename(run / "kept.json")
    (run / "vocabulary.json").write_bytes((run / "kept.json").read_bytes()[:-20])
    try:
        refused = dnascale("export", str(run), str(tmp_path / "model"))
        assert refused.code == 3
        assert "vocabulary.json" in refused.error
    finally:
        (run / "kept.json").rename(run / "vocabulary.json")
    config = (run / "config.yaml").read_text()
    words = [
        "train",
        str(tmp_path / "config.yaml"),
        f"data.path={tmp_path / 'data'}",
        f"run.dir={run}",
        "train.steps=3",
    ]
    (tmp_path / "config.yaml").write_text(config)
    refused = dnascale(*words, "run.allow_change=true")
    assert refused.code == 4
    assert re.search("another (model|vocabulary)", refused.error)  # the size differs, or the tokens alone
