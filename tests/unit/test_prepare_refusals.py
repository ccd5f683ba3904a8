"""What `prepare` refuses, and what is left then: nothing under the final name, and nothing that a rerun could not use."""

from __future__ import annotations

import functools
import gc
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fasta import random_fasta, write

from dnascale.cli.dataset import show_dataset
from dnascale.data.prepare import Crew, Plan, PrepareOptions, carry_out_plan, prepare
from dnascale.data.prepare.tasks import Progress, Stage
from dnascale.data.shards import Dataset, load_dataset
from dnascale.data.verify import verify
from dnascale.errors import DataError, DnascaleError, SpaceError, UsageError
from dnascale.files import check_new_folder, hold


def refused(kind: type[DnascaleError], words: str, action: Callable[[], object], folder: Path) -> None:
    """`action` raises `kind` in those words, and `folder` is as it was, but for what was read and is kept beside `out`."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(kind, match=words) as caught:
        action()
    assert type(caught.value) is kind
    after = [path for path in folder.rglob("*") if not any(part.endswith(".preparing") for part in path.parts)]
    assert sorted(after) == before


@pytest.mark.parametrize(
    ("text", "options", "kind", "words"),
    [
        (">a\n\n>b\n\n", {}, DataError, "no sequence is left of 2 records .2 empty sequence.: .* nothing to train on"),
        (">a\nACGT\n", {"min_length": 5}, DataError, "no sequence is left of 1 records .1 shorter than 5 bases"),
        (">a\nACGT\n", {"valid": 1e-9}, DataError, r"the valid split got none of 1 records \(--valid 1e-09\)"),
        (">a\nACGT\n", {"valid": 1 - 1e-9}, DataError, "the train split got none"),
        (">a\nACGT\n", {"valid": 0, "test": 1e-9}, DataError, r"--test 0\."),
        (">a\nACGT\n>b\nAC GT\n", {}, DataError, r"a\.fa:4:3 \(byte 13\): byte 0x20 in record 'b': white space"),
        (">a\nACGT\n", {"group": r"gene=(\w+)"}, DataError, "record 'a' does not match"),
        ("", {}, DataError, "the file is empty"),
    ],
)
def test_unusable_input_is_a_data_error_and_leaves_nothing_behind(
    tmp_path: Path, text: str, options: dict[str, Any], kind: type[DnascaleError], words: str
) -> None:
    (tmp_path / "a.fa").write_text(text)
    refused(
        kind,
        words,
        lambda: prepare([str(tmp_path / "a.fa")], tmp_path / "out", PrepareOptions(**options)),
        tmp_path,
    )


def test_the_problems_of_all_inputs_are_told_at_once_and_listed_in_a_file_that_goes_with_them(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{name}.fa", [("a", "ACGT"), ("b", bases)]) for name, bases in zip("xyz", ("AC-T", "ACGT", "A*"), strict=True)]  # fmt: skip
    with pytest.raises(DataError) as caught:
        prepare(sources, tmp_path / "out", PrepareOptions(valid=0))
    assert str(caught.value).startswith("2 of 3 inputs are unusable:\n")
    assert "x.fa:4:3" in str(caught.value)
    assert "z.fa:4:2" in str(caught.value)
    listed = json.loads((tmp_path / "out.problems.json").read_text())
    assert [len(problems) for problems in listed.values()] == [1, 1]
    assert not (tmp_path / "out").exists()

    made = prepare(sources, tmp_path / "out", PrepareOptions(valid=0, skip_bad_files=True))
    assert not (tmp_path / "out.problems.json").exists()
    assert made.cleaning["records_in"] == 2
    assert ["skipped" in source for source in made.sources] == [True, False, True]
    assert "x.fa:4:3" in made.sources[0]["skipped"]


def test_what_is_missing_because_a_file_was_left_out_is_told_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write(tmp_path / "g.fa", [("g", "ACGT" * 9)]), write(tmp_path / "b.fa", [("c1", "AC*T")])
    bed = tmp_path / "r.bed"
    bed.write_text("c1\t0\t3\n")
    with pytest.raises(DataError, match=r"1 input was left out by --skip-bad-files, the first because of: .*b\.fa:2:3"):
        prepare([good, bad], tmp_path / "out", PrepareOptions(valid=0, skip_bad_files=True, regions=str(bed)))
    show_dataset(prepare([good, bad], tmp_path / "all", PrepareOptions(valid=0, skip_bad_files=True)), as_json=False)
    assert "left out" in (said := capsys.readouterr().out)
    assert "b.fa:2:3" in said


def test_a_rank_does_not_take_a_data_set_of_changed_inputs_for_its_own(tmp_path: Path) -> None:
    source, out = write(tmp_path / "a.fa", [("a", "ACGT" * 9)]), tmp_path / "out"
    prepare([source], out, PrepareOptions(valid=0))
    part = Crew(1, 0, 2, part=True)
    assert isinstance(carry_out_plan(Plan.of([source], PrepareOptions(valid=0)), out, part, Progress()), Dataset)
    write(tmp_path / "a.fa", [("a", "ACGT" * 90)])
    with pytest.raises(UsageError, match="prepared from other inputs"):
        carry_out_plan(Plan.of([source], PrepareOptions(valid=0)), out, part, Progress())


def test_every_rank_keeps_a_list_of_the_problems_that_it_has_met_until_somebody_prepares_alone(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{n}.fa", [("a", "AC-T"), ("b", "ACGT"), ("c", "AC*T")]) for n in range(4)]
    plan, out = Plan.of(sources, PrepareOptions(valid=0)), tmp_path / "out"
    for rank in (0, 1, 0):
        with pytest.raises(DataError) as caught:
            carry_out_plan(plan, out, Crew(1, rank, 2, part=True), Progress())
        assert str(caught.value).endswith(f"All 4 problems are in {out}.problems-{rank}.json.")
    listed = [json.loads((tmp_path / f"out.problems-{rank}.json").read_text()) for rank in range(2)]
    assert [list(one) for one in listed] == [sources[::2], sources[1::2]]
    prepare(sources, out, PrepareOptions(valid=0, skip_bad_records=True))
    assert not list(tmp_path.glob("out.*"))


def test_no_list_is_left_when_the_data_set_is_whole(tmp_path: Path) -> None:
    source, out = tmp_path / "a.fa", tmp_path / "out"
    write(source, [("a", "AC-T"), ("b", "AC*T")])
    for world in (3, 2):
        with pytest.raises(DataError):
            carry_out_plan(Plan.of([str(source)], PrepareOptions(valid=0)), out, Crew(1, 0, world), Progress())
    (tmp_path / "out.problems-2.json").write_text("{}")  # as a rank of the first would have left it
    write(source, [("a", "ACGT")])
    shutil.rmtree(tmp_path / "out.preparing")
    carry_out_plan(Plan.of([str(source)], PrepareOptions(valid=0)), out, Crew(1, 0, 2), Progress())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fa", "out"]


def test_who_may_not_work_in_a_folder_is_not_told_to_remove_it(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{n}.fa", [("a", "ACGT")]) for n in range(2)]
    plan, out = Plan.of(sources, PrepareOptions(valid=0)), tmp_path / "out"
    carry_out_plan(plan, out, Crew(1, 0, 2, part=True), Progress())
    notes: list[str] = []
    progress = Progress()
    progress.note = notes.append  # type: ignore[method-assign]
    with hold(tmp_path / "out.preparing"), pytest.raises(UsageError, match="is being written by another run"):
        carry_out_plan(plan, out, Crew(), progress)
    assert notes == []
    other = Plan.of(sources, PrepareOptions(valid=0, min_length=2))
    with pytest.raises(UsageError, match="give all parts of one run the same"):
        carry_out_plan(other, out, Crew(1, 1, 2, part=True), progress)
    assert [note.partition("; ")[2] for note in notes] == ["remove it to begin anew when no rank is at work any more"]


@pytest.mark.parametrize(("names", "kept"), [("xy", True), ("y", False)])
def test_a_refusal_says_where_what_was_read_is_kept(names: str, kept: bool, tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{name}.fa", [("a", {"x": "ACGT", "y": "AC-T"}[name])]) for name in names]
    notes: list[str] = []
    progress = Progress()
    progress.note = notes.append  # type: ignore[method-assign]
    with pytest.raises(DataError):
        prepare(sources, tmp_path / "out", PrepareOptions(valid=0), progress=progress)
    work = tmp_path / "out.preparing"
    assert work.exists() == kept
    assert [str(work) in note for note in notes] == [True] * kept


def test_more_than_twenty_problems_of_a_file_are_all_in_the_list(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fa", [(f"r{i}", "AC-T") for i in range(100)])
    with pytest.raises(DataError, match=r"All 100 problems are in \S+out\.problems\.json"):
        prepare([source], tmp_path / "out", PrepareOptions(valid=0))
    assert len(json.loads((tmp_path / "out.problems.json").read_text())[source]) == 100
    assert {path.name for path in tmp_path.iterdir()} == {"a.fa", "out.problems.json"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"valid": -0.1}, "--valid -0.1"),
        ({"valid": 0.5, "test": 0.5}, "--test 0.5"),
        ({"min_length": 0}, "--min-length 0"),
        ({"seed": 1 << 200}, r"below 2\^64"),
        ({"group": "locus"}, "parentheses"),
        ({"group": "(gene"}, "is not a regular expression"),
    ],
)
def test_impossible_options_are_usage_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PrepareOptions(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spliced": True}, "add --regions"),
        ({"coding": True}, "add --regions"),
        ({"regions": "a.bed", "spliced": True, "coding": True}, "--spliced and --coding exclude each other"),
        ({"feature": "exon"}, "add --annotation"),
        ({"ignore_chr": True}, "--ignore-chr .* add --regions or --annotation"),
        ({"allow_absent": True}, "--allow-absent .* add --regions or --annotation"),
        ({"genetic_code": 4}, "add --valid-cds"),
        ({"group_otherwise": "file"}, "--group gene finds a group for every record"),
        ({"group": "chromosome", "group_otherwise": "file"}, "--group chromosome finds a group for every record"),
        ({"cluster": 0.2, "valid": 0}, "add --valid or --test"),
    ],
)
def test_an_option_with_nothing_to_act_on_is_a_usage_error_that_says_what_is_missing(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        PrepareOptions(**options)


def test_a_column_named_for_a_file_without_columns_is_told(tmp_path: Path) -> None:
    fasta = write(tmp_path / "a.fa", [("a", "ACGT")])
    (tmp_path / "b.csv").write_text("id,dna\nb,ACGT\n")
    made = prepare([fasta, str(tmp_path / "b.csv")], tmp_path / "out", PrepareOptions(valid=0, column="dna"))
    assert ["has no columns" in " ".join(source["warnings"]) for source in made.sources] == [True, False]


def test_the_command_has_every_option_of_prepare_with_the_same_default() -> None:
    import inspect
    from dataclasses import fields

    from dnascale.cli.prepare import _NO_OPTIONS
    from dnascale.cli.prepare import prepare as command

    given = {name: p.default for name, p in inspect.signature(command).parameters.items() if name not in _NO_OPTIONS}
    assert given.keys() == {field.name for field in fields(PrepareOptions)}
    assert PrepareOptions(**given) == PrepareOptions()


def test_a_folder_that_holds_something_a_file_and_a_nameless_path_are_no_place_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.fa", [("a", "ACGT"), ("b", "ACGT")])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out, words in [
        (tmp_path / "full", "full exists and is not empty"),
        (tmp_path / "a.fa", "a.fa exists: choose another name"),
        (tmp_path / "a.fa" / "out", "cannot be written"),
        (Path(), "has no name of its own"),
    ]:
        refused(UsageError, words, functools.partial(prepare, [source], out, PrepareOptions(valid=0)), tmp_path)
    dataset = prepare([source], tmp_path / "empty", PrepareOptions(valid=0))
    assert dataset.split("train").records == 2


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_without_write_permission_is_a_usage_error(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fa", [("a", "ACGT")])
    parent = tmp_path / "closed"
    parent.mkdir(mode=0o500)
    refused(
        UsageError, "cannot be written", lambda: prepare([source], parent / "out", PrepareOptions(valid=0)), tmp_path
    )


class Interfering(Progress):
    """Does something at the first sign of progress of a stage."""

    def __init__(self, stage: str, action: Callable[[], object]) -> None:
        self.stage, self.action, self.now = stage, action, ""
        self.reached: list[str] = []

    def begin(self, stage: Stage, tasks: int, size: int) -> None:
        self.now = stage

    def advance(self, bases: int) -> None:
        self.reached.append(self.now)
        if self.now == self.stage:
            self.action()


@pytest.mark.parametrize("change", ["appended", "rewritten", "removed"])
def test_a_source_that_changes_while_it_is_read_is_a_data_error(tmp_path: Path, change: str) -> None:
    source = tmp_path / "a.fa"
    write(source, [(f"r{i}", "ACGT") for i in range(50)])
    text = source.read_text()

    def interfere() -> None:
        if change == "appended":
            source.write_text(text + ">late\nACGT\n")
        elif change == "rewritten":
            source.write_text(text.replace("A", "T"))
            os.utime(source, ns=(0, source.stat().st_mtime_ns + 1_000_000))
        else:
            source.unlink(missing_ok=True)

    with pytest.raises(DataError, match=r"a\.fa changed while it was read"):
        prepare([str(source)], tmp_path / "out", PrepareOptions(valid=0), progress=Interfering("reading", interfere))
    assert {path.name for path in tmp_path.iterdir()} <= {"a.fa"}


@pytest.mark.parametrize("stage", ["reading", "writing"])
def test_an_interrupted_run_can_be_repeated_and_keeps_only_what_it_has_read(tmp_path: Path, stage: str) -> None:
    source = write(tmp_path / "a.fa", random_fasta(7))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "out", PrepareOptions(), progress=Interfering(stage, interrupt))
    assert {path.name for path in tmp_path.iterdir()} == {"a.fa"} | ({"out.preparing"} if stage == "writing" else set())
    again = Interfering("", interrupt)
    prepare([source], tmp_path / "out", PrepareOptions(), progress=again)
    assert ("reading" in again.reached) == (stage == "reading")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fa", "out"]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("fails", "workers"), [("run", 1), ("shard", 1), ("shard", 2)])
def test_a_file_that_cannot_grow_is_a_space_error_without_noise_that_says_what_is_kept(
    tmp_path: Path, fails: str, workers: int
) -> None:
    """The kernel refuses writes beyond a file size limit, wherever they come from."""
    resource = pytest.importorskip("resource")
    count, length = {"run": (300, 200), "shard": (1, 39_500)}[fails]
    rng = random.Random(8)
    source = write(tmp_path / "a.fa", [(f"{rng.getrandbits(400):x}", "A" * length) for _ in range(count)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    progress = Interfering("", lambda: None)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
        try:
            options = PrepareOptions(valid=0)
            prepare([source], tmp_path / "out", options, workers, progress, block_tokens=512, shard_blocks=64)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    kept = {"run": "Nothing was kept of it", "shard": r"What is done is kept in \S+out\.preparing"}[fails]
    refused(SpaceError, f"no space left to write .*{kept}", run, tmp_path)
    assert (tmp_path / "out.preparing").exists() == (fails != "run")
    if workers == 1:  # the process of a worker tells only what it has written
        assert ("writing" in progress.reached) == (fails != "run")
    gc.collect()
    assert verify(prepare([source], tmp_path / "out", PrepareOptions(valid=0))) == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux namespaces")
def test_a_full_disk_gives_exit_code_5_and_one_sentence_and_the_rerun_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    source = write(tmp_path / "a.fa", [(f"r{i}", "ACGT" * 500) for i in range(100)])
    mount = f"mount -t tmpfs -o size=400k tmpfs '{disk}' || exit 99"
    prepare_it = f"'{sys.executable}' -m dnascale prepare '{source}' --out '{disk}/out' --valid 0 2>&1"
    larger = f"mount -o remount,size=2m '{disk}'"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount}; {prepare_it}; echo $?; ls -A '{disk}'; {larger}; {prepare_it}; ls '{disk}'"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 99 or "unshare:" in done.stderr:
        pytest.skip("may not mount here")
    first, second = done.stdout.split("out.preparing\n")
    assert re.fullmatch(r"dnascale: error: no space left to write \S+: [\d,]+ bytes are free\. [^\n]+\n5\n", first)
    assert "(fingerprint" in second
    assert second.endswith("\nout\n")


def test_a_link_is_no_place_to_write_nor_a_name_that_cannot_be_shown(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fa", [("a", "ACGT")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, words in [
        ("link", "link is a link, which no folder can replace"),
        ("dangling", "dangling is a link"),
        ("bad\x1b[2J", "cannot be printed"),
        (os.fsdecode(b"\xff"), "not UTF-8"),
    ]:
        refused(UsageError, words, functools.partial(prepare, [source], tmp_path / name, PrepareOptions()), tmp_path)


def test_a_mounted_disk_is_no_place_to_write() -> None:
    with pytest.raises(UsageError, match="/dev is a mounted disk, which no folder can replace"):
        check_new_folder(Path("/dev"))


def test_what_is_wrong_with_a_file_that_the_options_name_is_told_once_for_all_inputs(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{name}.fa", [(name, "ACGT")]) for name in "abc"]
    (tmp_path / "x.bed").write_text("a\t3\t1\n")
    with pytest.raises(DataError) as caught:
        prepare(sources, tmp_path / "out", PrepareOptions(valid=0, regions=str(tmp_path / "x.bed")))
    assert str(caught.value).endswith("x.bed:1: the start '3' is not before the end '1'; BED is 0-based half-open.")
    assert "\n" not in str(caught.value)


def test_names_of_files_in_no_encoding_can_be_groups_and_steer_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / os.fsdecode(b"\xff.fa"), [("a", "ACGT")])
    write(folder / "\x1b[2J\n.fa", [("b", "ACGT")])
    made = prepare([str(folder)], tmp_path / "out", PrepareOptions(valid=0, group="file"))
    assert [source["name"] for source in made.sources] == [r"\x1b[2J\n.fa", r"\udcff.fa"]
    command = [sys.executable, "-m", "dnascale", "prepare", "\x1b[2J.fa", "--out", "x"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert said.stderr.startswith(r"dnascale: error: no file matches \x1b[2J.fa;")


def test_an_unset_variable_of_the_shell_is_not_the_folder_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.fa", [("a", "ACGT")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="an empty name"):
        prepare([""], tmp_path / "out", PrepareOptions(valid=0))


@pytest.mark.parametrize(("end", "code"), [("| true", 141), (">&-", 0)])
def test_a_data_set_is_whole_also_when_nobody_reads_what_is_printed(tmp_path: Path, end: str, code: int) -> None:
    write(tmp_path / "a.fa", [("a", "ACGT")])
    line = f"set -o pipefail; {sys.executable} -m dnascale prepare a.fa --valid 0 --out ./out {end}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.stderr, done.returncode) == ("", code)
    assert verify(load_dataset(tmp_path / "out")) == []


def test_a_column_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "name,sequence,offset in the record,start\nr1,ACGTNNNNACGT,abc,x\nr2,ACGTACGTTT,5,y\n"
    )
    made = prepare([str(tmp_path / "a.csv")], tmp_path / "out", PrepareOptions(valid=0, max_n_run=1))
    rows = pq.read_table(tmp_path / "out" / "train" / "shard-000000.records.parquet").to_pylist()
    assert made.cleaning["cut"] == 1
    assert sorted((row["record"], row["record_start"]) for row in rows) == [("r1", 0), ("r1", 8), ("r2", 0)]
