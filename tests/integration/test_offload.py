"""The files of ds_configs/ that keep state off the device: the same losses, and checkpoints that others continue."""

import json
import shutil
from pathlib import Path

import pytest
from jobs import dnascale, metrics, numbers, require_deepspeed, train, train_words

from dnascale.data.shards import Dataset

FOLDER = Path(__file__).parents[2] / "ds_configs"
STEPS = ("train.steps=3", "train.precision=bf16")


def test_state_in_host_memory_trains_as_zero3_does_and_one_process_goes_on(human_cds: Dataset, tmp_path: Path) -> None:
    require_deepspeed()
    kept = train(tmp_path / "kept", human_cds, *STEPS, processes=2, engine="zero3")
    run = tmp_path / "offloaded"
    outcome = dnascale(*train_words(run, human_cds, *STEPS, engine="zero3_offload"), processes=2)
    assert outcome.code == 0, outcome.output
    assert "offload_optimizer=cpu · offload_param=cpu" in outcome.output
    for line, reference in zip(metrics(run), kept, strict=True):
        assert line["windows_digest"] == reference["windows_digest"]
        assert line["loss"] == pytest.approx(reference["loss"], rel=0.003)
    manifest = json.loads((run / "checkpoints" / "step-00000003" / "MANIFEST.json").read_text())
    assert manifest["world_size"] == 2
    more = dnascale(*train_words(run, human_cds, "train.steps=4", "train.precision=bf16", "run.allow_change=true"))
    assert more.code == 0, more.output
    assert "resumed  from the checkpoint of step 3" in more.output


@pytest.mark.faults
def test_a_run_with_state_in_host_memory_resumes_bit_for_bit(human_cds: Dataset, tmp_path: Path) -> None:
    require_deepspeed()
    steps = ("train.steps=6", "checkpoint.every=3", "checkpoint.keep=10")
    whole = train(tmp_path / "whole", human_cds, *steps, processes=2, engine="zero3_offload")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000006")
    again = train(tmp_path / "again", human_cds, *steps, processes=2, engine="zero3_offload")
    assert numbers(again) == numbers(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)  # DeepSpeed compiles async_io once on a machine: four minutes on one core
def test_optimizer_state_on_a_disk_trains_as_zero3_does_and_resumes_bit_for_bit(
    human_cds: Dataset, tmp_path: Path
) -> None:
    require_deepspeed()
    from dnascale.launch.doctor.surroundings import can_build_async_io
    from dnascale.train.distributed import import_deepspeed

    import_deepspeed(on_cpu=True)
    if not can_build_async_io():
        pytest.skip("libaio's headers or a C++ compiler are not here: apt-get install libaio-dev g++")
    # DeepSpeed leaves pieces of less than a MiB in memory.
    large = ("model.hidden_size=128", "model.layers=4", "model.intermediate_size=256", "train.precision=bf16")
    steps = (*large, "train.steps=4", "checkpoint.every=2", "checkpoint.keep=10")
    kept = train(tmp_path / "kept", human_cds, *steps, processes=2, engine="zero3")
    scratch, run, own = tmp_path / "scratch", tmp_path / "run", tmp_path / "own.json"
    own.write_text((FOLDER / "zero3_nvme.json").read_text().replace('"nvme_path": "auto"', f'"nvme_path": "{scratch}"'))
    words = train_words(run, human_cds, *steps, engine=str(own))
    outcome = dnascale(*words, processes=2, timeout=800)
    assert outcome.code == 0, outcome.output
    assert len(list(scratch.rglob("exp_avg-*.swp"))) == 2
    for line, reference in zip(metrics(run), kept, strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], rel=0.003)
    whole = numbers(metrics(run))
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    outcome = dnascale(*words, processes=2)
    assert outcome.code == 0, outcome.output
    assert "resumed  from the checkpoint of step 2" in outcome.output
    assert numbers(metrics(run)) == whole
