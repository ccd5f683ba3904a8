"""Killed and started again: the rest of the run is the uninterrupted one, to the bit."""

import json
import shutil
from pathlib import Path

import pytest
from jobs import Outcome, dnascale, metrics, numbers, train, train_until_killed, train_words

from dnascale.data.shards import Dataset
from dnascale.files import hold, json_digest
from dnascale.train.checkpoint import Checkpoint, committed

STEPS = 16
LENGTH = (f"train.steps={STEPS}", "checkpoint.every=5", "checkpoint.keep=10")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("processes", "engine"), [(1, "plain"), (2, "plain"), (1, "zero2"), (2, "zero2"), (2, "zero3")]
)
def test_a_run_killed_with_sigkill_continues_bit_for_bit(
    human_cds: Dataset, tmp_path: Path, processes: int, engine: str
) -> None:
    whole = train(tmp_path / "whole", human_cds, *LENGTH, processes=processes, engine=engine)
    run = tmp_path / "killed"
    # Steps after the last checkpoint are lost, and must be done again.
    train_until_killed(run, human_cds, *LENGTH, step=8, processes=processes, engine=engine)
    assert committed(run / "checkpoints")[0].name == "step-00000005"
    outcome = dnascale(*train_words(run, human_cds, *LENGTH, engine=engine), processes=processes)
    assert outcome.code == 0, outcome.output
    assert "resumed  from the checkpoint of step" in outcome.output
    assert numbers(metrics(run)) == numbers(whole)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("optimizer", "processes", "engine"),
    [
        *(_FEW := [("muon", 1, "plain"), ("adafactor", 2, "zero3")]),
        *(
            pytest.param(optimizer, processes, engine, marks=pytest.mark.slow)
            for optimizer in ("muon", "adafactor", "stable_adamw")
            for processes, engine in ((1, "plain"), (2, "plain"), (2, "zero1"), (2, "zero2"), (2, "zero3"))
            if (optimizer, processes, engine) not in _FEW
        ),
    ],
)
def test_every_optimizer_continues_bit_for_bit(
    human_cds: Dataset, tmp_path: Path, optimizer: str, processes: int, engine: str
) -> None:
    options = ("train.steps=8", "checkpoint.every=3", "checkpoint.keep=10", f"optimizer.name={optimizer}")
    whole = train(tmp_path / "whole", human_cds, *options, processes=processes, engine=engine)
    run = tmp_path / "killed"
    train_until_killed(run, human_cds, *options, step=4, processes=processes, engine=engine)
    assert numbers(train(run, human_cds, *options, processes=processes, engine=engine)) == numbers(whole)


def test_a_checkpoint_of_another_optimizer_is_refused_or_its_weights_go_on(
    short_run: Path, human_cds: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    other = ("optimizer.name=muon", "run.allow_change=true", "train.steps=9")
    refused = again(run, human_cds, *other)
    assert refused.code == 4
    assert "was saved with optimizer.name=adamw" in refused.error
    assert "optimizer.restart=true" in refused.error
    restarted = dnascale(*train_words(run, human_cds, "checkpoint.every=1", *other, "optimizer.restart=true"))
    assert restarted.code == 0, restarted.output
    losses = [line["loss"] for line in metrics(run)]
    assert losses[-1] < losses[0]
    # The next start knows when Muon began: its steps are the ones of the run that went on.
    shutil.rmtree(run / "checkpoints" / "step-00000009")
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    before = numbers(metrics(run))
    assert dnascale(*train_words(run, human_cds, "checkpoint.every=1", *other)).code == 0
    assert numbers(metrics(run)) == before


@pytest.mark.faults
def test_numbers_summed_over_several_steps_are_not_lost_at_a_checkpoint(human_cds: Dataset, tmp_path: Path) -> None:
    length = (*LENGTH, "log.every=4")
    whole = train(tmp_path / "whole", human_cds, *length)
    train_until_killed(tmp_path / "killed", human_cds, *length, step=8)
    assert numbers(train(tmp_path / "killed", human_cds, *length)) == numbers(whole)


@pytest.fixture(scope="module")
def short_run(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("short") / "run"
    train(run, human_cds, "train.steps=6", "checkpoint.every=2", "checkpoint.keep=2")
    return run


def again(run: Path, data: Dataset, *overrides: str) -> Outcome:
    return dnascale(*train_words(run, data, "train.steps=6", "checkpoint.every=2", "checkpoint.keep=2", *overrides))


def test_only_the_newest_checkpoints_are_kept(short_run: Path) -> None:
    assert [path.name for path in committed(short_run / "checkpoints")] == ["step-00000004", "step-00000006"]
    assert {path.name for path in (short_run / "checkpoints").iterdir()} == {"step-00000004", "step-00000006"}


def test_a_damaged_checkpoint_does_not_count_among_those_kept(
    short_run: Path, human_cds: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    folder = run / "checkpoints"
    (folder / "step-00000006" / "MANIFEST.json").write_text("{}")
    (folder / "step-00000099").mkdir()
    (folder / ".trash-step-00000002-1").mkdir()
    words = train_words(run, human_cds, "train.steps=6", "checkpoint.every=1", "checkpoint.keep=1")
    outcome = dnascale(*words)
    assert outcome.code == 0, outcome.output
    assert {path.name for path in folder.iterdir()} == {"step-00000006", "step-00000099", "damaged-step-00000006"}
    Checkpoint(folder / "step-00000006").verify()


def test_a_finished_run_started_again_does_nothing(short_run: Path, human_cds: Dataset) -> None:
    before = numbers(metrics(short_run))
    outcome = again(short_run, human_cds)
    assert outcome.code == 0, outcome.output
    assert "nothing was left of 6 steps" in outcome.output
    assert numbers(metrics(short_run)) == before


def test_everything_needed_to_repeat_a_run_is_in_its_folder(
    short_run: Path, human_cds: Dataset, tmp_path: Path
) -> None:
    environment = json.loads((short_run / "environment.json").read_text())
    assert environment["data_fingerprint"] == human_cds.fingerprint
    assert {"torch", "transformers", "accelerate", "dnascale"} <= set(environment["versions"])
    repeated = tmp_path / "repeated"
    outcome = dnascale("train", short_run / "config.yaml", f"run.dir={repeated}")
    assert outcome.code == 0, outcome.output
    assert numbers(metrics(repeated)) == numbers(metrics(short_run))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "swap"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    short_run: Path, human_cds: Dataset, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    newest = run / "checkpoints" / "step-00000006"
    weights = newest / "rank-00000-of-00001.safetensors"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "remove":
        weights.unlink()
    elif damage == "manifest":
        manifest = newest / "MANIFEST.json"
        manifest.write_text(manifest.read_text().replace('"step": 6', '"step": 7', 1))
    else:
        shutil.copy(run / "checkpoints" / "step-00000004" / weights.name, weights)
    outcome = again(run, human_cds)
    assert outcome.code == 0, outcome.output
    assert "warning" in outcome.output
    assert "step-00000006" in outcome.output
    assert "resumed  from the checkpoint of step 4" in outcome.output
    assert numbers(metrics(run)) == numbers(metrics(short_run))


def test_foreign_files_among_the_checkpoints_are_left_alone(
    short_run: Path, human_cds: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    folder = run / "checkpoints"
    (folder / "NOTES.txt").write_text("mine")
    (folder / "step-99").mkdir()
    (folder / "step-00000099").mkdir()
    outcome = again(run, human_cds)
    assert outcome.code == 0, outcome.output
    assert "resumed  from the checkpoint of step 6" in outcome.output
    assert (folder / "NOTES.txt").read_text() == "mine"
    assert (folder / "step-99").is_dir()


def test_a_changed_configuration_is_refused_and_shown(short_run: Path, human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    outcome = again(run, human_cds, "optimizer.learning_rate=0.5")
    assert outcome.code == 2
    assert "optimizer.learning_rate: 0.001 -> 0.5" in outcome.error
    assert outcome.error.endswith("run.allow_change=true to go on with the new one.")
    assert again(run, human_cds, "optimizer.learning_rate=0.5", "run.allow_change=true").code == 0


def test_a_checkpoint_of_another_model_is_refused(short_run: Path, human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    outcome = again(run, human_cds, "model.layers=3")
    assert outcome.code == 2
    assert outcome.error.endswith("Its checkpoints are of another model: use another run.dir.")
    outcome = again(run, human_cds, "model.local_attention=32")
    assert f"of another model: use another run.dir (model.init_from={run} begins with their weights)" in outcome.error
    outcome = again(run, human_cds, "model.layers=3", "run.allow_change=true")
    assert outcome.code == 4
    assert "num_hidden_layers 2 -> 3" in outcome.error


def test_a_checkpoint_of_the_first_format_goes_on(short_run: Path, human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    path = run / "checkpoints" / "step-00000004" / "MANIFEST.json"
    body = json.loads(path.read_text())
    for key in ("sha256", "optimizer"):
        del body[key]
    del body["state"]["optimizer_from"]
    body["version"] = 1
    path.write_text(json.dumps(body | {"sha256": json_digest(body)}))
    outcome = again(run, human_cds)
    assert outcome.code == 0, outcome.output
    assert "resumed  from the checkpoint of step 4" in outcome.output
    assert numbers(metrics(run)) == numbers(metrics(short_run))


@pytest.mark.parametrize("older", [True, False])
def test_a_checkpoint_of_a_later_version_is_neither_replaced_nor_advised_to_be_removed(
    short_run: Path, human_cds: Dataset, tmp_path: Path, older: bool
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    if not older:
        shutil.rmtree(run / "checkpoints" / "step-00000004")
    path = run / "checkpoints" / "step-00000006" / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    outcome = again(run, human_cds)
    assert outcome.code == 4
    assert outcome.error.endswith("upgrade dnascale.")
    assert path.is_file()


def test_a_stop_that_came_too_late_does_not_stop_the_next_start(
    short_run: Path, human_cds: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    (run / "STOP").touch()
    assert again(run, human_cds, "train.steps=7", "run.allow_change=true").code == 0
    assert not (run / "STOP").exists()


def test_a_run_goes_on_longer_when_asked(short_run: Path, human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    outcome = again(run, human_cds, "train.steps=8", "run.allow_change=true")
    assert outcome.code == 0, outcome.output
    assert [line["step"] for line in metrics(run)] == list(range(1, 9))
    assert "its learning rate rises again from 0.0005 to 0.001" in outcome.output


@pytest.mark.parametrize(
    ("steps", "told"), [(7, ""), (12, "now ends at 12: its learning rate rises again from 0.00017 to 0.00055")]
)
def test_a_learning_rate_that_rises_again_in_a_longer_run_is_told(
    short_run: Path, human_cds: Dataset, tmp_path: Path, steps: int, told: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    outcome = again(run, human_cds, f"train.steps={steps}", "schedule.shape=linear", "run.allow_change=true")
    assert outcome.code == 0, outcome.output
    assert told in outcome.output
    assert ("rises" in outcome.output) == bool(told)


def test_a_start_beside_another_touches_nothing_of_its_run(human_cds: Dataset, tmp_path: Path) -> None:
    """Not even what it would set aside: the other one may be about to write it."""
    run = tmp_path / "run"
    train(run, human_cds, "train.steps=2", "checkpoint.every=1")
    newest = run / "checkpoints" / "step-00000002"
    (newest / "MANIFEST.json").write_text("{")
    with hold(run):
        outcome = dnascale(*train_words(run, human_cds, "train.steps=2", "checkpoint.every=1"))
    assert outcome.code == 2
    assert "is being written by another run" in outcome.error
    assert newest.is_dir()
    assert len(metrics(run)) == 2
