"""What a checkpoint holds, what is refused of it, and what a failed save leaves: in one process, with a few small tensors."""

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from one_rank import IDENTITY, OneRank, engine, some_state
from safetensors import safe_open

from dnascale import __version__
from dnascale.errors import CheckpointError, NumericsError, SpaceError
from dnascale.files import json_digest
from dnascale.train import checkpoint as checkpoints
from dnascale.train import saving
from dnascale.train.checkpoint import (
    Checkpoint,
    Identity,
    committed,
    load,
    newest_valid,
    require_newest,
    resume_state,
    set_aside,
)
from dnascale.train.retention import is_pinned, pin
from dnascale.train.saving import Saving, save
from dnascale.train.state import TrainState

STATE = TrainState(total_steps=9, step=4, tokens=100, position=12)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.utils.gather_object", lambda values: values)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda values: values)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "checkpoints", engine(piece=8), STATE, IDENTITY)


def changed(folder: Path, sign: bool = True, **values: Any) -> None:
    """Changes the manifest, with a digest that fits if it is to be signed."""
    body = json.loads((folder / "MANIFEST.json").read_text()) | values
    if sign:
        del body["sha256"]
        body["sha256"] = json_digest(body)
    (folder / "MANIFEST.json").write_text(json.dumps(body))


def test_the_manifest_says_what_there_is(saved: Path) -> None:
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    assert saved.name == "step-00000004"
    assert sorted(os.listdir(saved)) == ["MANIFEST.json", "rank-00000-of-00001.safetensors"]
    assert {key: manifest[key] for key in ("format", "version", "created_by", "engine", "optimizer", "world_size")} == {
        "format": "dnascale-checkpoint", "version": 4, "created_by": f"dnascale {__version__}", "engine": "plain", "optimizer": "adamw",
        "world_size": 1,
    }  # fmt: skip
    assert manifest["state"] == STATE.to_dict()
    assert manifest["identity"] == {"model": {"hidden_size": 4, "layers": 2}, "vocabulary": "letters", "data": "these"}
    assert manifest["parameters"][0] == {
        "name": "embedding", "shape": [5, 4], "dtype": "float32",
        "kinds": {"weight": [5, 4], "exp_avg": [5, 4], "exp_avg_sq": [5, 4]},
    }  # fmt: skip
    assert [one["name"] for one in manifest["parameters"]] == ["embedding", "norm", "head"]
    assert {"file": "rank-00000-of-00001.safetensors", "key": "exp_avg/embedding@16", "parameter": "embedding", "kind": "exp_avg", "start": 16,
            "numel": 4} in manifest["fragments"]  # fmt: skip
    (file,) = manifest["files"]
    content = (saved / file["name"]).read_bytes()
    assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest["sha256"] == json_digest({key: value for key, value in manifest.items() if key != "sha256"})


def test_the_tensors_are_read_by_safetensors_itself(saved: Path) -> None:
    truth = some_state()
    with safe_open(saved / "rank-00000-of-00001.safetensors", framework="pt") as file:
        assert len(file.keys()) == 3 * (3 + 1 + 3)
        assert torch.equal(file.get_tensor("weight/head@8"), truth["head"]["weight"].reshape(-1)[8:16])
        assert file.get_tensor("weight/head@16").dtype == torch.float32


def test_any_range_is_put_together_from_fragments(saved: Path) -> None:
    found, truth = Checkpoint(saved), some_state()["embedding"]["exp_avg_sq"].reshape(-1)
    for start in range(20):
        for numel in range(1, 20 - start + 1):
            assert torch.equal(found.read("exp_avg_sq", "embedding", start, numel), truth[start : start + numel])
    for start, numel in ((0, 21), (19, 2), (20, 1)):
        with pytest.raises(CheckpointError, match=r"lacks 1 of .* values of exp_avg_sq embedding"):
            found.read("exp_avg_sq", "embedding", start, numel)
    with pytest.raises(CheckpointError, match="lacks 4 of 4 values of momentum norm"):
        found.read("momentum", "norm", 0, 4)
    weights = found.weights()
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "embedding": (5, 4),
        "norm": (4,),
        "head": (3, 7),
    }
    assert all(torch.equal(weights[name], kinds["weight"]) for name, kinds in some_state().items())


def test_every_kind_is_read_whole_whether_the_manifest_says_its_shapes_or_not(saved: Path) -> None:
    for _ in range(2):
        found = Checkpoint(saved)
        assert found.kinds() == ["weight", "exp_avg", "exp_avg_sq"]
        for kind in found.kinds():
            tensors = found.tensors(kind)
            assert list(tensors) == ["embedding", "norm", "head"]
            assert all(torch.equal(tensors[name], kinds[kind]) for name, kinds in some_state().items())
        assert found.tensors("momentum") == {}
        parameters = [{k: v for k, v in one.items() if k != "kinds"} for one in found.manifest["parameters"]]
        changed(saved, parameters=parameters, version=1)  # as it was before they were said


@pytest.mark.parametrize("piece", [1, 3, 1 << 30])
def test_what_was_saved_in_some_pieces_is_loaded_in_others(saved: Path, piece: int) -> None:
    other = OneRank(some_state(seed=1), piece=piece)
    load(Checkpoint(saved), other, Checkpoint(saved).state)  # type: ignore[arg-type]
    for name, kinds in some_state().items():
        assert all(torch.equal(other.tensors[name][kind], value) for kind, value in kinds.items())
    assert other.updates == 4


def test_steps_that_were_left_out_are_no_updates_of_the_optimizer(tmp_path: Path) -> None:
    found = Checkpoint(
        save(tmp_path, engine(), TrainState(total_steps=9, step=6, optimizer_from=1, skipped=2), IDENTITY)
    )
    other = engine()
    load(found, other, found.state)
    assert other.updates == 3
    assert resume_state(found, "muon", restart=True).skipped == 0


def test_an_optimizer_that_begins_anew_keeps_its_own_moments(saved: Path) -> None:
    found = Checkpoint(saved)
    assert resume_state(found, "adamw", restart=True) == found.state
    with pytest.raises(CheckpointError, match=r"saved with optimizer.name=adamw, whose state muon cannot use"):
        resume_state(found, "muon", restart=False)
    state = resume_state(found, "muon", restart=True)
    assert (state.optimizer_from, state.skipped, state.step) == (4, 0, 4)
    other = OneRank(some_state(seed=1))
    load(found, other, state)  # type: ignore[arg-type]
    assert torch.equal(other.tensors["head"]["weight"], some_state()["head"]["weight"])
    assert torch.equal(other.tensors["head"]["exp_avg"], some_state(seed=1)["head"]["exp_avg"])
    assert other.updates == 0


def test_a_sound_checkpoint_passes_and_any_change_of_its_files_does_not(saved: Path) -> None:
    Checkpoint(saved).verify()
    file = saved / "rank-00000-of-00001.safetensors"
    content = file.read_bytes()
    for wrong, sentence in [
        (content + b"x", f"has {len(content) + 1:,} bytes, its manifest says {len(content):,}"),
        (content[:-1] + bytes([content[-1] ^ 1]), "does not match its SHA-256: it is damaged"),
    ]:
        file.write_bytes(wrong)
        with pytest.raises(checkpoints.Damaged, match=sentence):
            Checkpoint(saved).verify()
    file.unlink()
    with pytest.raises(checkpoints.Damaged, match="is missing"):
        Checkpoint(saved).verify()


def test_a_manifest_that_is_not_its_own_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = (saved / "MANIFEST.json").read_text()
    changed(saved, sign=False, world_size=7)
    with pytest.raises(checkpoints.Damaged, match="does not match its own digest"):
        Checkpoint(saved)
    for text in ("", "[]", "{}", whole[:-30], "null"):
        (saved / "MANIFEST.json").write_text(text)
        with pytest.raises(checkpoints.Damaged, match=r"MANIFEST.json is damaged \("):
            Checkpoint(saved)
    (saved / "MANIFEST.json").write_text(whole)
    changed(saved, version=5)
    with pytest.raises(
        CheckpointError, match=r"is of format dnascale-checkpoint 5, this dnascale reads dnascale-checkpoint 4: upgrade"
    ):
        Checkpoint(saved)
    (saved / "MANIFEST.json").write_text(whole)
    changed(saved, format="another")
    with pytest.raises(CheckpointError, match="is of format another 4"):
        Checkpoint(saved)
    (saved / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"is no checkpoint: it has no MANIFEST\.json"):
        Checkpoint(saved)


def test_versions_before_the_optimizer_was_named_are_of_adamw(saved: Path) -> None:
    body = json.loads((saved / "MANIFEST.json").read_text())
    del body["optimizer"]
    (saved / "MANIFEST.json").write_text(json.dumps(body))
    changed(saved, version=1)
    assert Checkpoint(saved).optimizer == "adamw"


def test_versions_before_rotary_bases_could_be_chosen_are_of_modernberts_own(saved: Path) -> None:
    own = {
        "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    changed(saved, version=3)
    found = Checkpoint(saved)
    found.require(replace(IDENTITY, model={**IDENTITY.model, "rope_parameters": own}), engine().shapes)
    other = {**own, "full_attention": {"rope_type": "default", "rope_theta": 0.25}}
    with pytest.raises(CheckpointError, match="rope_parameters"):
        found.require(replace(IDENTITY, model={**IDENTITY.model, "rope_parameters": other}), engine().shapes)


@pytest.mark.parametrize(
    ("identity", "shapes", "sentence"),
    [
        (
            Identity({"hidden_size": 8, "layers": 2}, "letters", "these"),
            None,
            r"another model \(hidden_size 4 -> 8\): give this run its own run.dir",
        ),
        (Identity({"hidden_size": 8, "layers": 3}, "letters", "these"), None, r"\(hidden_size 4 -> 8, layers 2 -> 3\)"),
        (Identity(IDENTITY.model, "letters", "0123456789abcdef"), None, r"fingerprint these, now 0123456789ab\)"),
        (IDENTITY, {"norm": (4,)}, r"another model \(other parameters\)"),
        (Identity(IDENTITY.model, "k-mers", "these"), None, "trained with another vocabulary"),
        (Identity(IDENTITY.model, "letters", "those"), None, r"trained on other data \(fingerprint these, now those\)"),
    ],
)
def test_a_checkpoint_of_something_else_says_in_what_it_differs(
    saved: Path, identity: Identity, shapes: dict[str, tuple[int, ...]] | None, sentence: str
) -> None:
    found, own = Checkpoint(saved), engine().shapes
    found.require(IDENTITY, own)
    with pytest.raises(CheckpointError, match=sentence):
        found.require(identity, own if shapes is None else shapes)


def test_the_newest_valid_one_wins_and_damaged_ones_are_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert newest_valid(folder) == (None, [])
    paths = [save(folder, engine(), TrainState(20, step), IDENTITY) for step in (2, 10, 12)]
    assert committed(folder) == paths
    (folder / "step-12").mkdir()
    (folder / "notes.txt").write_text("not a checkpoint")
    (folder / "step-00000099").write_text("a file")
    assert committed(folder) == paths
    (paths[2] / "rank-00000-of-00001.safetensors").unlink()
    found, rejected = newest_valid(folder)
    assert found is not None
    assert (found.folder, len(rejected)) == (paths[1], 1)
    (said,) = set_aside(rejected)
    assert said.endswith("is missing. It is now damaged-step-00000012. The one before is used.")
    assert (folder / "damaged-step-00000012").is_dir()
    assert committed(folder) == paths[:2]
    paths[1].rename(folder / "step-00000011")
    found, rejected = newest_valid(folder)
    assert found is not None
    assert found.state.step == 2
    assert str(rejected[0]).endswith("holds step 10: somebody renamed it.")
    shutil.rmtree(paths[0])
    with pytest.raises(CheckpointError, match=r"has no valid checkpoint\. .*somebody renamed it"):
        require_newest(tmp_path)
    with pytest.raises(CheckpointError, match="holds none"):
        require_newest(tmp_path / "nowhere")
    (folder / "damaged-step-00000011").mkdir()  # in the way: it cannot be renamed
    (folder / "damaged-step-00000011" / "x").touch()
    assert set_aside(rejected) == [f"{rejected[0]} The one before is used."]
    other = CheckpointError("is of a newer format.")
    assert set_aside([other]) == ["is of a newer format. The one before is used."]


def test_values_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    for kind in ("weight", "exp_avg_sq"):
        one = engine()
        one.tensors["norm"][kind][2] = float("inf")
        with pytest.raises(NumericsError, match=f"{kind} of norm is not finite: such a checkpoint is not written"):
            save(tmp_path / "checkpoints", one, STATE, IDENTITY)
        assert committed(tmp_path / "checkpoints") == []


def test_nothing_is_begun_without_room_for_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine()
    needed = 4 * 3 * (20 + 4 + 21)
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: shutil._ntuple_diskusage(10**9, 0, free))
        folder = tmp_path / str(free)
        if fits:
            save(folder, one, STATE, IDENTITY)
            continue
        with pytest.raises(
            SpaceError, match=f"it takes {needed} bytes, {free} are free. Older checkpoints are untouched"
        ):
            save(folder, one, STATE, IDENTITY)
        assert os.listdir(folder) == []


@pytest.mark.parametrize("point", ["write", "fsync", "manifest", "rename", "sync"])
@pytest.mark.parametrize(
    ("action", "kind", "sentence"),
    [("enospc", SpaceError, "no space left for"), ("eio", CheckpointError, "cannot be written: Input/output error")],
)
def test_a_save_that_fails_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, action: str, kind: type[Exception], sentence: str
) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, engine(), TrainState(9, 2), IDENTITY)
    monkeypatch.setenv("DNASCALE_FAULT", f"ckpt.{point}:step=4:{action}")
    with pytest.raises(kind, match=sentence):
        save(folder, engine(), STATE, IDENTITY)
    monkeypatch.delenv("DNASCALE_FAULT")
    found, rejected = newest_valid(folder)
    assert found is not None
    # After the rename it is there, whether or not it would have survived a power cut.
    assert (found.state.step, rejected) == (4 if point == "sync" else 2, [])
    assert save(folder, engine(), TrainState(9, 6), IDENTITY).name == "step-00000006"


def test_what_a_killed_save_left_is_swept_by_the_next_of_that_step(tmp_path: Path) -> None:
    work = tmp_path / "checkpoints" / ".step-00000004.partial"
    work.mkdir(parents=True)
    (work / "rank-00001-of-00002.safetensors").write_text("half")
    path = save(tmp_path / "checkpoints", engine(), STATE, IDENTITY)
    assert not work.exists()
    assert sorted(os.listdir(path)) == ["MANIFEST.json", "rank-00000-of-00001.safetensors"]


def test_one_of_the_same_step_that_is_there_gives_way(saved: Path) -> None:
    changed(saved, sign=False, world_size=3)
    again = save(saved.parent, engine(), STATE, IDENTITY)
    assert again == saved
    Checkpoint(again).verify()
    (aside,) = [path for path in saved.parent.iterdir() if path.name.startswith(".step-00000004.replaced-")]
    assert json.loads((aside / "MANIFEST.json").read_text())["world_size"] == 3


def test_in_the_background_what_is_written_is_the_state_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNASCALE_FAULT", "ckpt.write:sleep=0.2")
    one, state = engine(), TrainState(9, 4, norms=[1.0])
    asked: list[tuple[torch.Tensor, str]] = []
    one.accelerator.reduce = lambda value, reduction: asked.append((value, reduction)) or value
    going = Saving(tmp_path / "checkpoints", one, state, IDENTITY, background=True)
    assert not going.written()
    one.tensors["norm"]["weight"].zero_()
    state.step, state.tokens = 5, 999
    state.norms.append(2.0)
    assert committed(tmp_path / "checkpoints") == []
    found = Checkpoint(going.commit())
    assert going.written()
    assert [(float(value), reduction) for value, reduction in asked] == [(1.0, "sum"), (0.0, "sum")]
    assert (found.state.step, found.state.tokens, found.state.norms) == (4, 0, [1.0])
    assert torch.equal(found.weights()["norm"], some_state()["norm"]["weight"])


def test_a_failure_in_the_background_is_raised_by_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNASCALE_FAULT", "ckpt.fsync:enospc")
    going = Saving(tmp_path / "checkpoints", engine(), STATE, IDENTITY, background=True)
    with pytest.raises(SpaceError, match="no space left for the checkpoint"):
        going.commit()
    assert committed(tmp_path / "checkpoints") == []


def test_large_tensors_are_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_CHUNK", 10)
    path = save(tmp_path / "checkpoints", engine(), STATE, IDENTITY)
    Checkpoint(path).verify()
    assert all(torch.equal(value, some_state()[name]["weight"]) for name, value in Checkpoint(path).weights().items())


def test_a_pin_is_put_on_and_taken_off(saved: Path) -> None:
    assert not is_pinned(saved)
    pin(saved, on=True)
    pin(saved, on=True)
    assert is_pinned(saved)
    Checkpoint(saved).verify()
    pin(saved, on=False)
    pin(saved, on=False)
    assert not is_pinned(saved)
    with pytest.raises(CheckpointError, match=r"step-00000007 is not there\.$"):
        pin(saved.parent / "step-00000007", on=True)


def test_a_checkpoint_that_cannot_be_read_is_passed_over_and_not_renamed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector in a file of the newest: the one before is used, and the folder stays, for the disk may be mended."""
    newer = save(saved.parent, engine(piece=8), replace(STATE, step=5), IDENTITY)
    opened = Path.open

    def broken(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.parent == newer and path.suffix == ".safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", broken)
    found, rejected = newest_valid(saved.parent)
    assert found is not None
    assert found.folder == saved
    assert [str(error).split(": ")[1] for error in rejected] == ["Input/output error."]
    set_aside(rejected)
    assert newer.is_dir()


def test_a_manifest_that_cannot_be_read_is_no_end_of_a_run(saved: Path) -> None:
    (saved / "MANIFEST.json").unlink()
    (saved / "MANIFEST.json").mkdir()
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json cannot be read: Is a directory"):
        Checkpoint(saved)
