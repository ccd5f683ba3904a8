"""Checkpoints copied elsewhere: a run whose folder is lost goes on from there, to the bit; a mirror that fails stops nothing."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from jobs import Outcome, dnascale, metrics, numbers, train_words

from dnascale.data.shards import Dataset
from dnascale.errors import CheckpointError, UsageError
from dnascale.train import mirror
from dnascale.train.checkpoint import Checkpoint, committed, newest_valid
from dnascale.train.mirror import Mirror, fetch_config, fetch_newer

pytestmark = pytest.mark.faults
LENGTH = ("train.steps=8", "checkpoint.every=2", "checkpoint.keep=2", "checkpoint.keep_best=0")
#: Dies long enough after the save of step 4 for that to be sent.
DIES = "step.forward:step=6:sleep=2,step.forward:step=6:kill"


def run_with(run: Path, data: Dataset, location: str, processes: int = 1, **env: str) -> Outcome:
    return dnascale(*train_words(run, data, *LENGTH, f"checkpoint.mirror={location}"), processes=processes, **env)


@pytest.fixture(scope="module")
def whole(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert dnascale(*train_words(run, human_cds, *LENGTH)).code == 0
    return numbers(metrics(run))


def test_a_run_whose_folder_is_lost_goes_on_from_the_mirror(
    human_cds: Dataset, tmp_path: Path, whole: list[dict[str, object]]
) -> None:
    there = tmp_path / "there"
    died = run_with(tmp_path / "run", human_cds, str(there), DNASCALE_FAULT=DIES)
    assert died.code == -9
    assert [path.name for path in committed(there)] == ["step-00000002", "step-00000004"]
    shutil.rmtree(tmp_path / "run")
    again = run_with(tmp_path / "elsewhere", human_cds, str(there))
    assert again.code == 0, again.output
    assert f"step-00000004 comes from {there}" in again.output
    assert "resumed  from the checkpoint of step 4" in again.output
    assert numbers(metrics(tmp_path / "elsewhere")) == whole[4:]
    # As many stay there as here.
    assert [path.name for path in committed(there)] == ["step-00000006", "step-00000008"]
    for path in committed(there):
        Checkpoint(path).verify()


@pytest.fixture
def sent(human_cds: Dataset, tmp_path: Path) -> Path:
    """A mirror with the checkpoints of steps 6 and 8 of a finished run."""
    there = tmp_path / "sent"
    assert run_with(tmp_path / "first", human_cds, str(there), processes=2).code == 0
    return there


def test_what_is_not_whole_or_damaged_there_is_never_taken(sent: Path, tmp_path: Path) -> None:
    newest = sent / "step-00000008"
    part = next(newest.glob("rank-00001*"))
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    said = fetch_newer(str(sent), tmp_path / "here", None)
    assert "does not match its SHA-256" in said[0]
    assert said[1] == f"step-00000006 comes from {sent}"
    found, rejected = newest_valid(tmp_path / "here")
    assert found is not None
    assert (found.state.step, rejected) == (6, [])
    (sent / "step-00000006" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"none of .* could be fetched: .* does not match its SHA-256"):
        fetch_newer(str(sent), tmp_path / "other", None)
    assert committed(tmp_path / "other") == []
    (sentence,) = fetch_newer(str(sent), tmp_path / "other", 4)  # there is one here to go on from
    assert "does not match its SHA-256" in sentence


def test_only_what_is_newer_is_fetched(sent: Path, tmp_path: Path) -> None:
    assert fetch_newer(str(sent), tmp_path / "here", 8) == []
    assert fetch_newer(str(sent), tmp_path / "here", 7) == [f"step-00000008 comes from {sent}"]
    assert fetch_newer(str(tmp_path / "nothing"), tmp_path / "here", None) == []


def test_a_run_whose_folder_is_lost_keeps_its_configuration_and_its_length(
    human_cds: Dataset, sent: Path, tmp_path: Path
) -> None:
    run = tmp_path / "elsewhere"
    words = train_words(run, human_cds, *LENGTH, f"checkpoint.mirror={sent}")
    outcome = dnascale(*words, "optimizer.learning_rate=0.5")
    assert outcome.code == 2
    assert "was begun with another configuration (optimizer.learning_rate: 0.001 -> 0.5)" in outcome.error
    shutil.rmtree(run)
    lengthless = [word for word in words if not word.startswith("train.steps=")]
    assert "nothing was left of 8 steps" in dnascale(*words).output
    shutil.rmtree(run)
    # The steps that minutes or epochs came to are not counted anew.
    recorded = (sent / "config.yaml").read_text()
    (sent / "config.yaml").write_text(recorded.replace("epochs: null", "epochs: 2.0"))
    outcome = dnascale(*lengthless, "train.epochs=2.0")
    assert "nothing was left of 8 steps" in outcome.output


def test_what_a_killed_run_had_not_sent_is_sent_by_the_next_start(
    human_cds: Dataset, sent: Path, tmp_path: Path
) -> None:
    shutil.rmtree(sent / "step-00000008")
    again = run_with(tmp_path / "first", human_cds, str(sent))
    assert "nothing was left of 8 steps" in again.output
    Checkpoint(sent / "step-00000008").verify()
    assert not list((tmp_path / "first" / "checkpoints").glob(".*"))


def test_a_manifest_is_there_whole_or_not_at_all(
    human_cds: Dataset, sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, there = tmp_path / "first" / "checkpoints" / "step-00000008", sent / "step-00000008"
    shutil.rmtree(there)
    write = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        write(path, content[: len(content) // 2])
        raise OSError(errno.EIO, "Input/output error")

    said: list[str] = []
    one = Mirror(str(sent), 2, said.append)
    with monkeypatch.context() as torn:
        torn.setattr(Path, "write_bytes", half)
        one.send(checkpoint)
        one.finish()
    assert "step-00000008 is not in " in said[0]
    assert not (there / "MANIFEST.json").exists()
    write(there / ".MANIFEST.json.left", b"{")  # as a process leaves it that is killed there
    one.catch_up(checkpoint)
    one.finish()
    assert fetch_newer(str(sent), tmp_path / "here", None) == [f"step-00000008 comes from {sent}"]
    assert {path.name for path in (tmp_path / "here" / "step-00000008").iterdir()} == {
        path.name for path in checkpoint.iterdir()
    }


def test_a_checkpoint_that_is_damaged_here_is_replaced_by_the_mirrors(
    human_cds: Dataset, sent: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "first" / "checkpoints"
    for path in committed(folder):
        manifest = path / "MANIFEST.json"
        manifest.write_text(manifest.read_text().replace('"step": ', '"step":  ', 1)[:-20])
    again = run_with(tmp_path / "first", human_cds, str(sent))
    assert again.code == 0, again.output
    assert f"step-00000008 comes from {sent}" in again.output
    assert "nothing was left of 8 steps" in again.output
    assert (folder / "damaged-step-00000008").is_dir()


def test_a_mirror_that_cannot_be_written_is_a_warning(
    human_cds: Dataset, tmp_path: Path, whole: list[dict[str, object]]
) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = run_with(tmp_path / "run", human_cds, f"{tmp_path}/file/there")
    assert outcome.code == 0, outcome.output
    assert "warning: step-00000008 is not in " in outcome.output
    assert numbers(metrics(tmp_path / "run")) == whole


def test_a_mirror_that_does_not_answer_does_not_let_a_run_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> list[str]:
        raise TimeoutError("no route to host")

    monkeypatch.setattr(mirror, "_steps", silent)
    with pytest.raises(
        CheckpointError, match=r"does not answer \(TimeoutError: no route to host\), and .* has no checkpoint"
    ):
        fetch_newer(str(tmp_path), tmp_path / "here", None)
    monkeypatch.setattr(LocalFileSystem, "cat_file", stale)
    with pytest.raises(CheckpointError, match=r"does not answer \(OSError: .*, and .* has no configuration"):
        fetch_config(str(tmp_path), tmp_path / "here" / "config.yaml")
    (sentence,) = fetch_newer(str(tmp_path), tmp_path / "here", 4)
    assert sentence.endswith("the run goes on from its own checkpoints.")
    with pytest.raises(UsageError, match="is no place that can be written"):
        fetch_newer("nonsense://there", tmp_path / "here", None)


@pytest.mark.parametrize("here", [True, False])
def test_a_checkpoint_of_a_later_version_is_refused_with_a_mirror_too(
    human_cds: Dataset, sent: Path, tmp_path: Path, here: bool
) -> None:
    folder = tmp_path / "first" / "checkpoints"
    for place in (sent, folder):
        path = place / "step-00000008" / "MANIFEST.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    if not here:
        shutil.rmtree(tmp_path / "first")
    outcome = run_with(tmp_path / "first", human_cds, str(sent))
    assert outcome.code == 4
    assert outcome.error.endswith("upgrade dnascale.")
    assert (folder / "step-00000008").is_dir() is here
    assert not list(folder.glob("damaged-*"))


def stale(*_: object, **__: object) -> Any:
    raise OSError(errno.ESTALE, "Stale file handle")


def test_a_mirror_that_cannot_be_looked_into_is_not_taken_for_an_empty_one(
    sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's own `exists` says no, whatever the reason."""
    monkeypatch.setattr(LocalFileSystem, "info", stale)
    with pytest.raises(CheckpointError, match="Stale file handle"):
        fetch_newer(str(sent), tmp_path / "here", None)


def test_one_look_that_fails_lets_no_checkpoint_be_removed(sent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info, failed = LocalFileSystem.info, []

    def once(files: LocalFileSystem, path: str, **options: Any) -> Any:
        if path.endswith("step-00000008/MANIFEST.json") and not failed:
            failed.append(path)
            stale()
        return info(files, path, **options)

    monkeypatch.setattr(LocalFileSystem, "info", once)
    with pytest.raises(OSError, match="Stale"):
        Mirror(str(sent), 1, print)._prune("step-00000008")
    assert [path.name for path in committed(sent)] == ["step-00000006", "step-00000008"]


def test_a_start_that_was_killed_after_the_fetch_does_not_lock_the_folder(
    human_cds: Dataset, sent: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fetch_newer(str(sent), run / "checkpoints", None)
    (run / ".lock").touch()
    again = run_with(run, human_cds, str(sent))
    assert again.code == 0, again.output
    assert "nothing was left of 8 steps" in again.output
    other = dnascale(*train_words(tmp_path / "other", human_cds, *LENGTH))
    assert other.code == 0
    shutil.copytree(run / "checkpoints", tmp_path / "stray" / "checkpoints")
    refused = dnascale(*train_words(tmp_path / "stray", human_cds, *LENGTH))
    assert "is not empty and holds no run" in refused.error


def test_what_others_left_there_stays_and_what_never_became_whole_goes(human_cds: Dataset, tmp_path: Path) -> None:
    there = tmp_path / "there"
    for name, whole in (("step-00000900", True), ("step-00000001", False)):
        (there / name).mkdir(parents=True)
        (there / name / "rank-00000-of-00001.safetensors").write_text("x")
        if whole:
            (there / name / "MANIFEST.json").write_text("{}")
    run = tmp_path / "run"
    assert dnascale(*train_words(run, human_cds, *LENGTH)).code == 0  # step 8 is here, and 900 there is damaged
    again = dnascale(
        *train_words(run, human_cds, *LENGTH, f"checkpoint.mirror={there}", "train.steps=10", "run.allow_change=true")
    )
    assert again.code == 0, again.output
    assert "MANIFEST.json is damaged" in again.output
    own = ["config.yaml", "step-00000008", "step-00000010"]  # the one it went on from too, which was not there
    assert sorted(path.name for path in there.iterdir()) == [*own, "step-00000900"]


def test_a_checkpoint_is_sent_whole_though_it_is_removed_meanwhile(
    human_cds: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpoint.keep=1 the next save removes what a slow store is still given."""
    run = tmp_path / "run"
    words = train_words(run, human_cds, "train.steps=2", "checkpoint.every=2")
    assert dnascale(*words).code == 0
    path = run / "checkpoints" / "step-00000002"
    one = mirror.Mirror(str(tmp_path / "there"), 1, pytest.fail)
    put = one._files.put_file

    def slow(source: str, target: str) -> None:
        shutil.rmtree(path, ignore_errors=True)
        put(source, target)

    monkeypatch.setattr(one._files, "put_file", slow)
    one.send(path)
    one.finish()
    Checkpoint(tmp_path / "there" / "step-00000002").verify()
    assert os.listdir(run / "checkpoints") == []


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a local S3, with a bucket `runs`."""
    server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    host = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    host.start()
    address, port = host.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="runs")
    yield env
    host.stop()


def test_a_bucket_is_a_mirror(
    human_cds: Dataset, tmp_path: Path, bucket: dict[str, str], whole: list[dict[str, object]]
) -> None:
    died = run_with(tmp_path / "run", human_cds, "s3://runs/first", DNASCALE_FAULT=DIES, **bucket)
    assert died.code == -9, died.output
    shutil.rmtree(tmp_path / "run")
    again = run_with(tmp_path / "run", human_cds, "s3://runs/first", **bucket)
    assert again.code == 0, again.output
    assert "step-00000004 comes from s3://runs/first" in again.output
    assert numbers(metrics(tmp_path / "run")) == whole[4:]
    assert "is not in" not in again.output
    fetch_newer("s3://runs/first", tmp_path / "fetched", None)
    found, _ = newest_valid(tmp_path / "fetched")
    assert found is not None
    assert found.state.step == 8
    own = json.loads((tmp_path / "run" / "checkpoints" / "step-00000008" / "MANIFEST.json").read_text())
    assert found.manifest == own
    assert not any(name.startswith(".step-") for name in os.listdir(tmp_path / "fetched"))
