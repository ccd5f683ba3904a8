"""Whoever does the work, in whatever order: the same bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from fasta import random_fasta, tree, write

from dnascale.cli.prepare import _part
from dnascale.data.prepare import Crew, Plan, PrepareOptions, Unfinished, carry_out_plan, prepare
from dnascale.data.prepare.tasks import Progress
from dnascale.data.shards import Dataset, load_dataset
from dnascale.errors import UsageError

OPTIONS = PrepareOptions(valid=0.2, test=0.1, soft_mask=True, drop_duplicates=True, max_leakage=1.0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Five files; names and whole records occur in several of them."""
    folder = tmp_path_factory.mktemp("sources")
    made = [write(folder / f"{n}.fa", [*random_fasta(n, 60), ("same gene=s", "ACGTT" * 9)]) for n in range(4)]
    return [*made, write(folder / "long.fa", [("long gene=long", "ACGTTGCAacgt" * 100_000)])]


def plan_of(sources: list[str]) -> Plan:
    return Plan.of(sources, OPTIONS, block_tokens=512 * 100, shard_blocks=2)


@pytest.fixture(scope="module")
def alone(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone") / "out"
    assert isinstance(carry_out_plan(plan_of(sources), out, Crew(), Progress()), Dataset)
    made = tree(out)
    assert len(made) > 30
    return made


@pytest.mark.parametrize("workers", [2, 4])
def test_worker_processes_give_the_same_bytes(
    workers: int, sources: list[str], alone: dict[str, bytes], tmp_path: Path
) -> None:
    done = carry_out_plan(plan_of(sources), tmp_path / "out", Crew(workers), Progress())
    assert isinstance(done, Dataset)
    assert tree(done.folder) == alone


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_in_any_order_give_the_same_bytes(
    world: int, sources: list[str], alone: dict[str, bytes], tmp_path: Path
) -> None:
    rng, out = random.Random(world), tmp_path / "out"
    calls = 0
    while not (out / "dataset.json").exists():
        for rank in rng.sample(range(world), world):
            done = carry_out_plan(plan_of(sources), out, Crew(1, rank, world, part=True), Progress())
            calls += 1
            assert isinstance(done, Unfinished | Dataset)
    assert calls <= 2 * world
    assert tree(out) == alone
    late = carry_out_plan(plan_of(sources), out, Crew(1, 0, world, part=True), Progress())
    assert isinstance(late, Dataset)
    for others, options in ((sources[:-1], plan_of(sources).options), (sources, PrepareOptions(min_length=9))):
        with pytest.raises(UsageError, match="prepared from other inputs or with other options"):
            carry_out_plan(Plan.of(others, options), out, Crew(1, 0, world, part=True), Progress())


def test_a_rank_says_what_others_have_left_and_ends_well_and_a_call_on_its_own_does_the_rest(
    sources: list[str], alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dnascale", "prepare", *sources, "--out", str(out)]
    done = subprocess.run([*command, "--rank", "1", "--world", "3"], capture_output=True, text=True, check=True)
    assert (
        "rank 1 of 3: this rank's share of reading is done; 3 of 5 inputs are not read yet, by other ranks"
        in done.stdout
    )
    assert not out.exists()
    subprocess.run(command, check=True, capture_output=True)
    assert not (tmp_path / "out.preparing").exists()
    assert tree(out) == tree(prepare(sources, tmp_path / "other" / "out", PrepareOptions()).folder)


def test_a_slurm_array_tells_rank_and_world_also_when_its_numbers_have_an_offset_and_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _part(None, None) is None
    for name, value in {"ID": "7", "MIN": "1", "STEP": "2", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert _part(None, None) == (3, 4)
    assert _part(0, 2) == (0, 2)
    with pytest.raises(UsageError, match="belong together"):
        _part(0, None)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_cannot_be_is_a_usage_error(rank: int, world: int) -> None:
    with pytest.raises(UsageError, match="--rank"):
        Crew(1, rank, world)


def test_two_runs_do_not_work_in_one_folder(sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Meddling(Progress):
        def advance(self, bases: int) -> None:
            with pytest.raises(UsageError, match=r"out\.preparing is being written by another run"):
                carry_out_plan(plan_of(sources), out, Crew(), Progress())

    assert isinstance(carry_out_plan(plan_of(sources), out, Crew(), Meddling()), Dataset)


def test_a_rerun_with_other_options_says_so_and_reads_again_only_what_it_must(
    sources: list[str], tmp_path: Path
) -> None:
    class Noting(Progress):
        notes: list[str]
        read: int

        def __init__(self) -> None:
            self.notes, self.read = [], 0

        def note(self, sentence: str) -> None:
            self.notes.append(sentence)

        def begin(self, stage: str, tasks: int, size: int) -> None:
            self.read += tasks if stage == "reading" else 0

    for change, read in (({"test": 0.2}, 3), ({"cluster": 0.2}, 3), ({"min_length": 30}, 5)):
        out = tmp_path / "-".join(change) / "out"
        carry_out_plan(plan_of(sources), out, Crew(1, 0, 3, part=True), Progress())  # two of five inputs
        changed = PrepareOptions(**(OPTIONS.to_dict() | change))
        with pytest.raises(UsageError, match="give all parts of one run the same"):
            carry_out_plan(Plan.of(sources, changed), out, Crew(1, 1, 3, part=True), Progress())
        progress = Noting()
        prepare(sources, out, changed, progress=progress)
        assert progress.read == read
        assert [note.split("was begun with ")[1].split(":")[0] for note in progress.notes] == [
            f"other options (--{next(iter(change)).replace('_', '-')})"
        ]
        assert tree(out) == tree(prepare(sources, tmp_path / "fresh" / "out", changed).folder)
        shutil.rmtree(tmp_path / "fresh")


def test_what_was_read_before_the_machine_was_started_again_is_not_used(
    sources: list[str], alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    carry_out_plan(plan_of(sources), out, Crew(1, 0, 3, part=True), Progress())
    monkeypatch.setattr("dnascale.data.prepare.plan._start_of_machine", lambda: "another start")
    with pytest.raises(UsageError, match="before this machine was started again"):
        carry_out_plan(plan_of(sources), out, Crew(1, 1, 3, part=True), Progress())
    read = []

    class Counting(Progress):
        def begin(self, stage: str, tasks: int, size: int) -> None:
            read.append(tasks)

    carry_out_plan(plan_of(sources), out, Crew(), Counting())
    assert read[0] == len(sources)
    assert tree(out) == alone


def test_standard_input_reaches_worker_processes(sources: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dnascale", "prepare", "-", sources[1], "--workers", "2", "--out"]
    text = Path(sources[0]).read_bytes()
    subprocess.run([*command, str(tmp_path / "out")], input=text, check=True, capture_output=True)
    alone = prepare(sources[:2], tmp_path / "alone" / "out", PrepareOptions())
    made = {name: content for name, content in tree(tmp_path / "out").items() if name.endswith(".tar")}
    assert made == {name: content for name, content in tree(alone.folder).items() if name.endswith(".tar")}


# --- datatrove ---


@pytest.mark.skipif(find_spec("datatrove") is None, reason="datatrove is not installed")
def test_datatroves_local_executor_gives_the_same_bytes(
    sources: list[str], alone: dict[str, bytes], tmp_path: Path
) -> None:
    from datatrove.executor import LocalPipelineExecutor

    from dnascale.data.prepare.datatrove import Share

    for turn in ("1", "2"):
        share = Share(plan_of(sources), tmp_path / "out")
        LocalPipelineExecutor([share], tasks=3, workers=1, logging_dir=str(tmp_path / "logs" / turn)).run()
    assert tree(tmp_path / "out") == alone


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None or find_spec("datatrove") is None, reason="Ray is not installed")
def test_datatroves_ray_executor_on_two_workers_gives_the_same_bytes(
    sources: list[str], alone: dict[str, bytes], tmp_path: Path
) -> None:
    """In a process of its own, which Ray may leave as it likes."""
    program = f"""
import ray
from datatrove.executor import RayPipelineExecutor
from dnascale.data.prepare import Plan, PrepareOptions
from dnascale.data.prepare.datatrove import Share

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
plan = Plan.of({sources!r}, PrepareOptions(**{OPTIONS.to_dict()!r}), block_tokens=512 * 100, shard_blocks=2)
for turn in "12":
    share = Share(plan, {str(tmp_path / "out")!r})
    RayPipelineExecutor([share], tasks=4, workers=2, mem_per_cpu_gb=0.2, logging_dir={str(tmp_path)!r} + "/logs/" + turn).run()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tree(tmp_path / "out") == alone


def test_more_inputs_than_a_process_may_have_open_files(tmp_path: Path) -> None:
    for number in range(100):
        write(tmp_path / f"{number}.fa", [(f"r{number}", random.Random(number).choice("ACGT") * 9 + "A" * number)])
    limited = f"ulimit -n 60; exec {sys.executable} -m dnascale prepare {tmp_path} --out {tmp_path}/out --cluster 0.5 --drop-duplicates --max-leakage 1"
    subprocess.run(["bash", "-c", limited], check=True, capture_output=True)
    assert load_dataset(tmp_path / "out").cleaning["records_in"] == 100
