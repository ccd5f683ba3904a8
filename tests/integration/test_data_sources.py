"""Training on mixtures, in lanes, from tars that others made and from URLs: the same run on any processes, after any stop."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import dnascale, metrics, numbers, train, train_until_killed, train_words
from servers import Server, serving

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.read import split_records
from dnascale.data.shards import Dataset

STEPS = ("train.steps=12", "checkpoint.every=4", "checkpoint.keep=10")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The sequences of the built-in set again, in another order and another split."""
    folder = tmp_path_factory.mktemp("other") / "data"
    return prepare(["builtin:human-cds"], folder, PrepareOptions(valid=0.02, seed=5))


def mixed(one: Dataset, two: Dataset, *more: str) -> tuple[str, ...]:
    return (
        "data.path=null",
        f"data.sources.one={{path: {one.folder}, weight: 3}}",
        f"data.sources.two={{path: {two.folder}, weight: 1}}",
        *more,
    )


@pytest.mark.faults
def test_a_mixture_in_lanes_killed_and_continued_is_the_uninterrupted_run(
    human_cds: Dataset, other: Dataset, tmp_path: Path
) -> None:
    options = (*STEPS, *mixed(human_cds, other, "data.lanes=4", "data.lane_windows=64", "data.workers=1"))
    whole = train(tmp_path / "whole", human_cds, *options)
    train_until_killed(tmp_path / "killed", human_cds, *options, step=6)
    assert numbers(train(tmp_path / "killed", human_cds, *options)) == numbers(whole)


def test_a_mixture_shows_two_processes_the_windows_of_one_and_continues_on_either(
    human_cds: Dataset, other: Dataset, tmp_path: Path
) -> None:
    options = mixed(human_cds, other, "data.lanes=2", "data.lane_windows=128")
    alone = train(tmp_path / "alone", human_cds, *STEPS, *options)
    run = tmp_path / "run"
    train(run, human_cds, "train.steps=8", "checkpoint.every=4", *options, processes=2)
    both = train(run, human_cds, *STEPS, *options, "run.allow_change=true")
    assert [line["windows_digest"] for line in both] == [line["windows_digest"] for line in alone]
    assert [line["position"] for line in both] == [line["position"] for line in alone]


def test_ranks_that_find_other_data_do_not_begin(human_cds: Dataset, other: Dataset, tmp_path: Path) -> None:
    (tmp_path / "0").symlink_to(human_cds.folder)
    (tmp_path / "1").symlink_to(other.folder)
    words = train_words(tmp_path / "run", human_cds, "train.steps=1", f"data.path={tmp_path}/${{oc.env:RANK}}")
    outcome = dnascale(*words, processes=2)
    assert outcome.code == 3
    assert "rank 1 found other data than rank 0" in outcome.error


def test_weights_that_change_are_shown_and_refused(human_cds: Dataset, other: Dataset, tmp_path: Path) -> None:
    train(tmp_path / "run", human_cds, "train.steps=1", *mixed(human_cds, other))
    words = train_words(
        tmp_path / "run", human_cds, "train.steps=1", *mixed(human_cds, other, "data.sources.two.weight=2")
    )
    outcome = dnascale(*words)
    assert outcome.code == 2
    assert "data.sources.two.weight: 1.0 -> 2.0" in outcome.error


def test_a_mixture_is_evaluated_on_what_its_sources_hold_out(
    human_cds: Dataset, other: Dataset, tmp_path: Path
) -> None:
    train(tmp_path / "run", human_cds, "train.steps=2", *mixed(human_cds, other))
    outcome = dnascale("eval", tmp_path / "run")
    assert outcome.code == 0, outcome.output
    bases = sum(split.composition[b] for split in (human_cds.splits["valid"], other.splits["valid"]) for b in "ACGT")
    assert f"over {bases:,} bases of the valid split" in outcome.output
    for name, dataset in (("one", human_cds), ("two", other)):
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / "moved" / name).symlink_to(dataset.folder)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(human_cds.folder), "/gone"))
    assert "say where it is now with --data" in dnascale("eval", tmp_path / "run").error
    moved = dnascale("eval", tmp_path / "run", "--data", f"{tmp_path / 'moved'}/")
    assert moved.code == 0, moved.output
    assert f"over {bases:,} bases of the valid split" in moved.output


@pytest.fixture
def server(human_cds: Dataset) -> Iterator[Server]:
    with serving() as home:
        home.put(human_cds.folder)
        yield home


def test_a_run_from_a_url_is_the_run_from_a_folder_and_keeps_no_password(
    human_cds: Dataset, server: Server, tmp_path: Path
) -> None:
    near = train(tmp_path / "near", human_cds, *STEPS)
    url = server.url.replace("://", "://me:hunter2@") + "/set?token=hunter3"
    cache = tmp_path / "cache"
    far = train(tmp_path / "far", human_cds, *STEPS, f"data.path={url}", f"data.cache={cache}", processes=2)
    assert [line["windows_digest"] for line in far] == [line["windows_digest"] for line in near]
    for path in (tmp_path / "far").rglob("*.*"):
        assert b"hunter" not in path.read_bytes(), path
    read = [body for name, body in server.files.items() if name.endswith((".json", ".npy", ".tar"))]
    assert server.sent == sum(map(len, read))  # two processes, each byte once


def test_a_server_that_is_gone_is_one_sentence(human_cds: Dataset, server: Server, tmp_path: Path) -> None:
    url = f"{server.url}/elsewhere"
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, "train.steps=1", f"data.path={url}"))
    assert outcome.code == 3
    assert outcome.output.count("dnascale: error: ") == 1
    assert f"{url}/dataset.json could not be downloaded in 1 attempt: not found" in outcome.error
    assert not (tmp_path / "run").exists()


def write_tar(path: Path, dataset: Dataset, split: str, name: str) -> None:
    with tarfile.open(path, "w") as tar:
        for number, record in enumerate(split_records(dataset, split)[:300]):
            text = dataset.vocabulary.decode(record).encode()
            member = tarfile.TarInfo(name.format(split, number))
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))


def test_tars_that_others_made_are_indexed_and_trained_on(human_cds: Dataset, tmp_path: Path) -> None:
    train_tar, valid_tar, data = tmp_path / "train.tar", tmp_path / "valid.tar", tmp_path / "data"
    words = ("data", "index", train_tar, "--valid", valid_tar, "--out", data, "--suffix", "txt")
    # A key ends at the first dot: to WebDataset this is one sample with 300 members.
    write_tar(train_tar, human_cds, "train", "{}.{}.txt")
    write_tar(valid_tar, human_cds, "valid", "{}-{}.seq.txt")
    refused = dnascale(*words)
    assert refused.code == 3
    assert str(train_tar) in refused.error
    assert not data.exists()
    write_tar(train_tar, human_cds, "train", "{}-{}.seq.txt")
    outcome = dnascale(*words)
    assert outcome.code == 0, outcome.output
    assert dnascale("data", "verify", data).code == 0
    run = tmp_path / "run"
    outcome = dnascale(*train_words(run, human_cds, *STEPS, f"data.path={data}"))
    assert outcome.code == 0, outcome.output
    assert metrics(run)[-1]["step"] == 12
    assert dnascale("eval", run).code == 0
