"""What users meet after the first run: damaged, moved and finished things, and names that are not what they seem."""

import shutil
from pathlib import Path

import pytest
import yaml
from jobs import dnascale, train, train_words

from dnascale.config import load_config
from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.prepare.plan import Plan, Work
from dnascale.data.shards import Dataset
from dnascale.errors import UsageError

SMALL = ("model.hidden_size=32", "model.layers=1", "checkpoint.every=2")


@pytest.fixture(scope="module")
def trained(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of four steps, and its data in a place of their own."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(human_cds.folder, folder / "data")
    words = train_words(folder / "run", human_cds, *SMALL, "train.steps=4", f"data.path={folder / 'data'}")
    assert dnascale(*words).code == 0
    return folder / "run", folder / "data"


def test_an_older_checkpoint_is_not_taken_without_a_word(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    (weights,) = (run / "checkpoints" / "step-00000004").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    outcome = dnascale("export", run, tmp_path / "model")
    assert outcome.code == 0, outcome.output
    (warning,) = [line for line in outcome.output.splitlines() if line.startswith("dnascale: warning: ")]
    assert "step-00000004" in warning
    assert warning.endswith("step-00000002 is used.")


def test_data_that_have_moved_are_asked_for(trained: tuple[Path, Path], human_cds: Dataset, tmp_path: Path) -> None:
    run, data = trained
    data.rename(tmp_path / "elsewhere")
    try:
        outcome = dnascale("eval", run, "--out", tmp_path / "scores.json")
        assert outcome.code == 3
        assert f"was trained on {data}, which is not there: say where it is now with --data" in outcome.error
        assert dnascale("eval", run, "--data", tmp_path / "elsewhere", "--out", tmp_path / "scores.json").code == 0
    finally:
        (tmp_path / "elsewhere").rename(data)


def test_a_run_is_not_made_shorter_than_it_is(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, human_cds, *SMALL, "train.steps=4")
    words = train_words(run, human_cds, *SMALL, "train.steps=2", "run.allow_change=true")
    outcome = dnascale(*words)
    assert outcome.code == 2
    assert "is at step 4 already, beyond train.steps=2" in outcome.error
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 4


def test_prepare_killed_when_the_data_set_was_whole_has_only_to_tidy_up(tmp_path: Path) -> None:
    out, options = tmp_path / "data", PrepareOptions(valid=0.1)
    made = prepare(["builtin:human-cds"], out, options)
    work = Work.beside(out, Plan.of(["builtin:human-cds"], options))
    work.begin(alone=True)
    assert prepare(["builtin:human-cds"], out, options).fingerprint == made.fingerprint
    assert not work.folder.exists()
    work.begin(alone=True)
    with pytest.raises(UsageError, match="exists and is not empty"):
        prepare(["builtin:human-cds"], out, PrepareOptions(valid=0.2))


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "builtin:human-cds", "--out", "s3://bucket/data"],
        ["train", "nano", "data.path=d", "run.dir=s3://bucket/run"],
        ["export", "run", "gs://bucket/model"],
        ["score", "run", "v.vcf", "--reference", "g.fa", "--out", "gs://b/e.vcf"],
    ],
)
def test_nothing_is_written_to_a_folder_that_is_called_like_a_url(words: list[str], tmp_path: Path) -> None:
    outcome = dnascale(*words)
    assert outcome.code == 2
    assert "is a URL, and" in outcome.error


def test_a_home_folder_is_found_where_a_shell_leaves_its_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settled = load_config("nano", ["data.path=~/genes", "run.dir=~/runs/a", "train.steps=1"])
    assert settled.data.path == f"{tmp_path}/genes"
    assert settled.run.dir == f"{tmp_path}/runs/a"
    outcome = dnascale("prepare", "builtin:human-cds", "--out=~/made", HOME=str(tmp_path))
    assert outcome.code == 0, outcome.output
    assert (tmp_path / "made" / "dataset.json").is_file()


def test_a_colon_in_a_name_is_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare(["builtin:human-cds"], Path("out:1"), PrepareOptions()).fingerprint


def test_a_number_sign_in_a_name_begins_no_comment() -> None:
    settled = load_config("nano", ["data.path=my data #2", "run.dir=try #1", "train.steps=1"])
    assert (settled.data.path, settled.run.dir) == ("my data #2", "try #1")
    with pytest.raises(UsageError, match=r"'run.dir='q' cannot be read: put a value with special characters in quotes"):
        load_config("nano", ["data.path=d", "run.dir='q", "train.steps=1"])
