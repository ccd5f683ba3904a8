"""Bad input gets one clear sentence and a documented exit code; nothing half-written is left behind."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs import Outcome, dnascale, train, train_words

from dnascale.data.shards import Dataset

FASTA = b">a gene:g1\nACGTACGTACGT\n>b gene:g2\nTTGACCATGACC\n"


def prepare(tmp_path: Path, content: bytes, name: str = "in.fa", *options: str) -> Outcome:
    (tmp_path / name).write_bytes(content)
    outcome = dnascale("prepare", tmp_path / name, "--out", tmp_path / "out", *options)
    if outcome.code:
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob("*.partial-*"))
        assert "Traceback" not in outcome.output
    return outcome


def test_a_missing_file(tmp_path: Path) -> None:
    outcome = dnascale("prepare", tmp_path / "absent.fa", "--out", tmp_path / "out")
    assert outcome.code == 3
    assert "absent.fa does not exist" in outcome.error


def test_an_empty_file(tmp_path: Path) -> None:
    outcome = prepare(tmp_path, b"")
    assert outcome.code == 3
    assert "in.fa" in outcome.error
    assert "empty" in outcome.error


def test_a_file_that_is_not_fasta(tmp_path: Path) -> None:
    outcome = prepare(tmp_path, b"<!DOCTYPE html><html>404 Not Found</html>")
    assert outcome.code == 3
    assert "HTML" in outcome.error


def test_a_truncated_gzip(tmp_path: Path) -> None:
    outcome = prepare(tmp_path, gzip.compress(FASTA * 1000)[:-30], "in.fa.gz")
    assert outcome.code == 3
    assert "truncated" in outcome.error


def test_no_valid_sequence(tmp_path: Path) -> None:
    outcome = prepare(tmp_path, FASTA, "in.fa", "--min-length", "1000")
    assert outcome.code == 3
    assert "no sequence is left of 2 records (2 shorter than 1000 bases)" in outcome.error


def test_a_held_out_split_without_records(tmp_path: Path) -> None:
    outcome = prepare(tmp_path, b">a\nACGT\n", "in.fa", "--valid", "0.0001")
    assert outcome.code == 3
    assert "the valid split got none of 1 records" in outcome.error


def test_an_output_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "in.fa").write_bytes(FASTA)
    outcome = dnascale("prepare", tmp_path / "in.fa", "--out", tmp_path / "full")
    assert outcome.code == 2
    assert "exists and is not empty" in outcome.error
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"


def test_a_mistyped_configuration_key(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, "optimizer.learning_rat=0.1", "train.steps=1"))
    assert outcome.code == 2
    assert "unknown key 'optimizer.learning_rat' (did you mean 'optimizer.learning_rate'?)" in outcome.error
    assert not (tmp_path / "run").exists()


def test_a_value_of_the_wrong_type(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, "train.steps=many"))
    assert outcome.code == 2
    assert "train.steps=many" in outcome.error


def test_an_unknown_preset() -> None:
    outcome = dnascale("train", "nanno", "data.path=x")
    assert outcome.code == 2
    assert (
        "unknown preset 'nanno' (did you mean 'nano'?); there are: base, book, large, mini, nano, small."
        in outcome.error
    )


def test_a_setting_that_stands_where_the_preset_belongs() -> None:
    outcome = dnascale("train", "train.steps=100", "nano")
    assert outcome.code == 2
    assert "'train.steps=100' stands where the configuration belongs: first a preset (base, book," in outcome.error


def test_a_command_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    outcome = dnascale("bench", "book")
    assert outcome.code == 2
    assert outcome.error.strip() == (
        "No such command 'book'. dnascale bench has: run, table, compare, validate, plot, probe."
    )


def test_a_setting_that_is_written_as_an_option() -> None:
    outcome = dnascale("train", "nano", "--global-batch-tokens", "4096")
    assert outcome.code == 2
    assert "Settings of a run are written train.global_batch_tokens=VALUE, without dashes." in outcome.error
    assert "Settings" not in dnascale("train", "nano", "--nonsense").error


def test_text_that_holds_no_sequences(tmp_path: Path) -> None:
    outcome = prepare(tmp_path, b"# Notes\n\nwhat to do\n", "notes.md")
    assert outcome.code == 3
    assert (
        "notes.md:1:1: the first line must start with '>', but this is other text ('# Notes'), give sequences"
        in outcome.error
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_a_command_without_a_word(human_cds: Dataset, unbuffered: str) -> None:
    """Tables go through rich, JSON through print; one is longer than a pipe holds, the other not."""
    for words in (["data", "inspect", str(human_cds.folder)], ["data", "inspect", "--json", str(human_cds.folder)]):
        gone = subprocess.Popen(["true"], stdin=subprocess.PIPE)
        gone.wait()
        ended = subprocess.run(
            [sys.executable, "-m", "dnascale", *words], stdout=gone.stdin, stderr=subprocess.PIPE, text=True, check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (141, "")


def test_a_missing_data_set(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, "train.steps=1", f"data.path={tmp_path / 'no'}"))
    assert outcome.code == 3
    assert "no such data set folder" in outcome.error


def test_a_context_longer_than_every_sequence(tmp_path: Path) -> None:
    letters = np.random.default_rng(0).choice(list(b"ACGT"), (200, 40)).astype(np.uint8)
    records = b"".join(b">r%d\n%s\n" % (i, row.tobytes()) for i, row in enumerate(letters))
    assert prepare(tmp_path, records).code == 0
    outcome = dnascale("train", "nano", f"data.path={tmp_path / 'out'}", f"run.dir={tmp_path / 'run'}", "train.steps=1")
    assert outcome.code == 3
    assert "model.context=256 is longer than the longest training record (40 bases)" in outcome.error
    assert not (tmp_path / "run").exists()


def test_a_data_set_smaller_than_one_window(tmp_path: Path) -> None:
    assert prepare(tmp_path, FASTA, "in.fa", "--valid", "0").code == 0
    outcome = dnascale("train", "nano", f"data.path={tmp_path / 'out'}", f"run.dir={tmp_path / 'run'}", "train.steps=1")
    assert outcome.code == 3
    assert "fewer than one window of 256" in outcome.error


def test_a_damaged_shard_is_found_before_training(human_cds: Dataset, tmp_path: Path) -> None:
    shutil.copytree(human_cds.folder, tmp_path / "data")
    shard = tmp_path / "data" / "train" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[1_500_000] ^= 4
    shard.write_bytes(content)
    words = ("train.steps=1", "data.verify=start", f"data.path={tmp_path / 'data'}")
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, *words))
    assert outcome.code == 3
    assert "shard-000000.tar: block 1 " in outcome.error
    assert dnascale("data", "verify", tmp_path / "data").code == 3
    assert dnascale("data", "verify", human_cds.folder).code == 0


def test_a_missing_shard_of_the_valid_split_is_found_before_training(human_cds: Dataset, tmp_path: Path) -> None:
    shutil.copytree(human_cds.folder, tmp_path / "data")
    (tmp_path / "data" / "valid" / "shard-000000.tar").unlink()
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, "train.steps=1", f"data.path={tmp_path / 'data'}"))
    assert outcome.code == 3
    assert "valid/shard-000000.tar is missing" in outcome.error
    assert "step " not in outcome.output.replace("dnascale: error", "")


def test_a_batch_that_does_not_divide(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, "train.steps=1", "train.global_batch_tokens=1984"))
    assert outcome.code == 2
    assert "is not a multiple of 1 processes x train.micro_batch_tokens=512" in outcome.error


def test_a_learning_rate_that_diverges_stops_with_the_step(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = dnascale(
        *train_words(
            tmp_path / "run", human_cds, "train.steps=50", "optimizer.learning_rate=1e30", "train.precision=fp32"
        )
    )
    assert outcome.code == 6
    assert "step " in outcome.error
    assert "not finite" in outcome.error or "nan" in outcome.error or "inf" in outcome.error


def test_a_run_without_checkpoint_and_a_folder_that_is_no_run(human_cds: Dataset, tmp_path: Path) -> None:
    train(tmp_path / "run", human_cds, "train.steps=1")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for command in (("eval", tmp_path / "run"), ("export", tmp_path / "run", tmp_path / "out")):
        outcome = dnascale(*command)
        assert outcome.code == 4
        assert "has no valid checkpoint" in outcome.error
    outcome = dnascale("eval", tmp_path)
    assert outcome.code == 2
    assert "is no run folder" in outcome.error


def test_folder_names_with_brackets_are_names_and_not_markup(tmp_path: Path) -> None:
    (tmp_path / "in.fa").write_bytes(FASTA)
    out = tmp_path / "run[/bold] [red]x"
    outcome = dnascale("prepare", tmp_path / "in.fa", "--out", out, "--valid", "0")
    assert outcome.code == 0, outcome.output
    assert f"written  {out} (fingerprint" in outcome.output


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    outcome = dnascale("prepare", tmp_path / "absent.fa", "--out", tmp_path / "out", "--debug")
    assert outcome.code == 3
    assert "Traceback" in outcome.output
