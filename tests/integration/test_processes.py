"""Launching on several processes: what is not agreed on is refused, what one rank meets reaches all."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from jobs import TINY, dnascale, launch, metrics, require_deepspeed, train, train_words

from dnascale.data.shards import Dataset, Index, load_dataset
from dnascale.files import hold

ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
ROOT = Path(__file__).parents[2]


def accelerate(options: list[str], run: Path, data: Dataset, *overrides: str) -> list[str]:
    config = ["nano", *TINY, f"data.path={data.folder}", f"run.dir={run}", "train.steps=3", *overrides]
    return [*ACCELERATE, *options, "-m", "dnascale.train", *config]


@pytest.mark.parametrize(("file", "engine"), [("accelerate_ddp.yaml", "ddp"), ("accelerate_zero2.yaml", "zero2")])
def test_accelerate_launch_with_the_files_we_ship(human_cds: Dataset, tmp_path: Path, file: str, engine: str) -> None:
    if engine.startswith("zero"):
        require_deepspeed()
    options = ["--config_file", str(ROOT / "launch" / file), "--num_processes", "2"]
    outcome = launch(accelerate(options, tmp_path / "run", human_cds, "train.engine=auto"))
    assert outcome.code == 0, outcome.output
    assert f"{engine} · 2 processes" in outcome.output
    assert len(metrics(tmp_path / "run")) == 3


def test_the_multi_gpu_script_runs_from_a_folder_with_spaces(human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "my run", human_cds, "train.steps=3")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    outcome = launch(["bash", str(ROOT / "launch" / "multi_gpu.sh"), "2", *words[1:]], PATH=path)
    assert outcome.code == 0, outcome.output
    assert "ddp · 2 processes" in outcome.output
    assert len(metrics(tmp_path / "my run")) == 3


def test_a_launcher_that_quietly_starts_one_process_is_refused(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = launch(accelerate(["--num_processes", "2", "--cpu"], tmp_path / "run", human_cds))
    assert outcome.code != 0
    assert "the number of processes is not agreed on" in outcome.error
    assert "the launcher's command says 2" in outcome.error
    assert not (tmp_path / "run").exists()


def test_another_number_of_processes_than_expected_is_refused(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, "train.steps=1", "train.processes=4"))
    assert outcome.code == 7
    assert "train.processes says 4" in outcome.error


def test_accelerate_that_does_not_join_the_group_is_refused(human_cds: Dataset, tmp_path: Path) -> None:
    """WORLD_SIZE without a rendezvous: what a half-set environment looks like."""
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, "train.steps=1"), WORLD_SIZE="2")
    assert outcome.code != 0
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_error_on_one_rank_is_said_once_and_names_it(human_cds: Dataset, tmp_path: Path) -> None:
    """Each rank checks its share of the shards: the second shard is rank 1's."""
    data = tmp_path / "data"
    shutil.copytree(human_cds.folder, data)
    dataset = load_dataset(data)
    shard = dataset.splits["train"].shards[0]
    shutil.copy(data / shard.name, data / "train" / "shard-000001.tar")
    blocks = shard.blocks.copy()
    blocks["crc32"][0] ^= 1
    damaged = replace(shard, name="train/shard-000001.tar", blocks=blocks)
    train = replace(dataset.splits["train"], shards=Index.of([shard, damaged]))
    replace(dataset, splits=dataset.splits | {"train": train}).save(data)
    words = train_words(tmp_path / "run", dataset, "train.steps=1", "data.verify=start")
    outcome = dnascale(*words, processes=2)
    assert outcome.code == 3
    assert outcome.output.count("dnascale: error: ") == 1
    assert outcome.error.startswith("rank 1: ")
    assert "shard-000001.tar: block 0 " in outcome.error


def test_a_second_run_in_the_same_folder_is_refused(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, human_cds, "train.steps=1")
    with hold(run):
        outcome = dnascale(*train_words(run, human_cds, "train.steps=1"))
    assert outcome.code == 2
    assert f"is being written by another run (process {os.getpid()} on " in outcome.error
    assert dnascale(*train_words(run, human_cds, "train.steps=1")).code == 0


def test_an_error_on_every_rank_is_said_once(human_cds: Dataset, tmp_path: Path) -> None:
    shutil.copytree(human_cds.folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "shard-000000.tar").unlink()
    words = train_words(tmp_path / "run", human_cds, "train.steps=1", f"data.path={tmp_path / 'data'}")
    outcome = dnascale(*words, processes=2)
    assert outcome.code != 0
    assert outcome.output.count("dnascale: error: ") == 1
    assert "shard-000000.tar is missing" in outcome.error


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, dnascale.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'deepspeed', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout


def test_deepspeed_is_needed_only_for_its_engines(human_cds: Dataset, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked" / "deepspeed"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('not installed')")
    path = {"PYTHONPATH": str(tmp_path / "blocked")}
    command = [sys.executable, "-m", "dnascale"]
    plain = launch([*command, *train_words(tmp_path / "plain", human_cds, "train.steps=1")], **path)
    assert plain.code == 0, plain.output
    zero = launch([*command, *train_words(tmp_path / "zero", human_cds, "train.steps=1", engine="zero2")], **path)
    assert zero.code == 2
    assert "pip install 'dnascale[deepspeed]'" in zero.error
