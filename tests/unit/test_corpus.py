"""Several data sets as one: what they must share, how much of each is seen, and how the mixture is known again."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_mapped import BLOCK, random_records, random_stream, save, write_blocks, write_records, write_stream

from dnascale.data.corpus import Corpus, open_corpus
from dnascale.data.order import Mixture, Order
from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.read import covering_windows
from dnascale.data.shards import load_dataset
from dnascale.data.stream import Dealing, TrainStream
from dnascale.errors import DataError, DnascaleWarning, UsageError
from dnascale.vocab import CHARACTER, Vocabulary

CONTEXT = 24
SIZES = {"fly": 16 * BLOCK, "human": 4 * BLOCK, "yeast": 1 * BLOCK}  # tokens


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three data sets; `fly` holds out a split, `human` one too short for a window. In another order than their names'."""
    root = tmp_path_factory.mktemp("corpus")
    held_out = {"fly": 3 * BLOCK + 7, "human": CONTEXT - 1}
    for number, (name, size) in enumerate(sorted(SIZES.items(), reverse=True)):
        splits = {"train": write_stream(root / name, "train", random_stream(number, size))}
        if name in held_out:
            splits["valid"] = write_stream(root / name, "valid", random_stream(10 + number, held_out[name]))
        save(root / name, splits, soft_mask_bit=name != "yeast", block_tokens=BLOCK)
    return {name: root / name for name in sorted(SIZES, reverse=True)}


@pytest.fixture
def corpus(folders: dict[str, Path]) -> Corpus:
    return open_corpus(folders)


def shares(corpus: Corpus, positions: int = Mixture.PERIOD) -> dict[str, int]:
    """How many of the first windows come from each source, by the shards that they lie in."""
    reader = corpus.reader("train", CONTEXT)
    shard = corpus.order(reader, seed=0).windows(np.arange(positions)).shard
    counts = Counter((np.searchsorted(reader.first_shard, shard, side="right") - 1).tolist())
    return {name: counts[number] for number, name in enumerate(corpus.sources)}


# --- weights ---


def test_without_weights_a_source_is_seen_by_its_size_and_more_evenly_when_warmer(folders: dict[str, Path]) -> None:
    assert list(open_corpus(folders).sources) == ["fly", "human", "yeast"]
    assert shares(open_corpus(folders)) == {"fly": 7619, "human": 1905, "yeast": 476}  # 16 : 4 : 1
    assert shares(open_corpus(folders, temperature=2.0)) == {"fly": 5714, "human": 2857, "yeast": 1429}  # 4 : 2 : 1
    hot = shares(open_corpus(folders, temperature=1e6))
    assert max(hot.values()) - min(hot.values()) <= 1


def test_given_weights_are_kept_whatever_the_sizes_and_the_temperature(folders: dict[str, Path]) -> None:
    weights = {"human": 5.0, "yeast": 2.0, "fly": 3.0}
    corpus = open_corpus(folders, weights, temperature=3.0)
    assert corpus.weights == (3.0, 5.0, 2.0)  # in the order of names
    assert shares(corpus) == {"fly": 3000, "human": 5000, "yeast": 2000}
    assert shares(corpus, 3 * Mixture.PERIOD) == {"fly": 9000, "human": 15000, "yeast": 6000}


@pytest.mark.parametrize("weights", [(1, 0, 1), (1, -1, 1), (1, float("nan"), 1), (1, 1e-9, 1), (1, float("inf"), 1)])
def test_weights_that_cannot_be_kept_are_a_usage_error(folders: dict[str, Path], weights: tuple[float, ...]) -> None:
    corpus = open_corpus(folders, dict(zip(sorted(folders), weights, strict=True)))
    with pytest.raises(UsageError, match=r"^the sources cannot be mixed in the weights .*human .*\.$"):
        corpus.order(corpus.reader("train", CONTEXT), 0)


def test_the_order_is_that_of_a_stream_opened_with_the_same_folders_and_weights(folders: dict[str, Path]) -> None:
    weights = {"fly": 1.0, "human": 2.0, "yeast": 3.0}
    corpus = open_corpus(folders, weights)
    for lanes in (None, 2):
        reader = corpus.reader("train", CONTEXT)
        stream = TrainStream(reader, corpus.order(reader, 5, lanes, 16), Dealing(64))
        places, given = [folders[name] for name in weights], list(weights.values())
        other = TrainStream.open(places, CONTEXT, 64, seed=5, weights=given, lanes=lanes, lane_windows=16)
        for _ in range(5):
            (one,), (two,) = stream.next_step(), other.next_step()
            assert one.tokens.equal(two.tokens)
            assert one.keys.equal(two.keys)
        other.load_state_dict(stream.state_dict())


def test_one_source_needs_no_mixture_and_no_weight(folders: dict[str, Path]) -> None:
    for weights in (None, {"any": 0.0}):
        corpus = open_corpus({"any": folders["human"]}, weights)
        reader = corpus.reader("train", CONTEXT)
        order = corpus.order(reader, 3)
        assert order.mixture is None
        alone = Order(reader.grids(), 3).windows(np.arange(500))
        assert order.windows(np.arange(500)).digest() == alone.digest()


# --- the same data ---


def test_data_given_under_two_names_are_warned_of(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders["fly"], copy)
    with pytest.warns(DnascaleWarning, match="the sources a and c are the same data") as caught:
        corpus = open_corpus({"a": folders["fly"], "b": folders["yeast"], "c": copy}, {"a": 1, "b": 1, "c": 1})
    assert len(caught) == 1
    assert shares(corpus) == {"a": 3334, "b": 3333, "c": 3333}


def test_the_fingerprint_of_one_is_that_of_the_data_set_whatever_it_is_called(folders: dict[str, Path]) -> None:
    fingerprint = load_dataset(folders["fly"]).fingerprint
    assert {open_corpus({name: folders["fly"]}).fingerprint for name in ("fly", "a")} == {fingerprint}


def test_the_fingerprint_of_several_is_of_names_and_content_and_not_of_places(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    fingerprint = open_corpus(folders).fingerprint
    text = "".join(f"{name}\0{load_dataset(folders[name]).fingerprint}\0" for name in ("fly", "human", "yeast"))
    assert fingerprint == hashlib.sha256(text.encode()).hexdigest()

    elsewhere = {name: tmp_path / f"{number}" for number, name in enumerate(sorted(folders))}
    for name, folder in elsewhere.items():
        shutil.copytree(folders[name], folder)
    assert open_corpus(elsewhere).fingerprint == fingerprint
    weighed = open_corpus(folders, dict.fromkeys(folders, 1.0))
    assert weighed.fingerprint == fingerprint  # weights belong to the configuration

    others: list[dict[str, Path]] = [
        {name: folder for name, folder in folders.items() if name != "fly"},
        {("mouse" if name == "human" else name): folder for name, folder in folders.items()},
        folders | {"fly": folders["human"], "human": folders["fly"]},
        folders | {"yeast": write_blocks(tmp_path / "other", random_stream(99, SIZES["yeast"])).folder},
    ]
    assert len({fingerprint} | {open_corpus(sources).fingerprint for sources in others}) == 5


def test_data_sets_of_different_vocabularies_are_refused_and_both_are_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    swapped = Vocabulary("swapped", tuple("TACG") + CHARACTER.tokens[4:], CHARACTER.bases)
    index = write_stream(tmp_path / "swapped", "train", random_stream(0, 600))
    save(tmp_path / "swapped", {"train": index}, vocabulary=swapped, block_tokens=BLOCK)
    with pytest.raises(DataError, match="have different vocabularies") as caught:
        open_corpus(folders | {"swapped": tmp_path / "swapped"})
    assert f"{tmp_path / 'swapped'} and {folders['fly']} " in str(caught.value)
    assert open_corpus({"swapped": tmp_path / "swapped"}).vocabulary == swapped

    renamed = Vocabulary("another name", CHARACTER.tokens, CHARACTER.bases)  # the tokens are what counts
    index = write_stream(tmp_path / "renamed", "train", random_stream(0, 600))
    save(tmp_path / "renamed", {"train": index}, vocabulary=renamed, block_tokens=BLOCK)
    assert len(open_corpus(folders | {"renamed": tmp_path / "renamed"}).sources) == 4


def test_a_source_that_is_not_there_or_has_no_such_split_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such data set folder"):
        open_corpus(folders | {"a": tmp_path / "nowhere"})
    with pytest.raises(DataError, match="yeast has no split 'valid', it has: train"):
        open_corpus(folders).reader("valid", CONTEXT)
    with pytest.raises(DataError, match=r"split 'train' of \S+yeast has 512 tokens, fewer than one window of 513"):
        open_corpus(folders).reader("train", 513)


# --- what the sources have together ---


def test_held_out_uses_the_sources_that_have_a_window_of_such_a_split(corpus: Corpus, folders: dict[str, Path]) -> None:
    reader = corpus.held_out("valid", CONTEXT)
    assert reader is not None
    assert [dataset.folder for dataset in reader.sources] == [folders["fly"]]
    assert reader.split == "valid"
    windows, _ = covering_windows(reader.shard_tokens, CONTEXT)
    fly = load_dataset(folders["fly"]).split("valid").shards.tokens
    assert reader.shard_tokens.tolist() == fly.tolist()
    assert len(reader.read(windows)) == sum(-(-tokens // CONTEXT) for tokens in fly.tolist())

    shorter = corpus.held_out("valid", CONTEXT - 1)  # then `human` holds a window too
    assert shorter is not None
    assert [dataset.folder for dataset in shorter.sources] == [folders["fly"], folders["human"]]
    assert corpus.held_out("valid", 2 * BLOCK + 1) is None
    assert corpus.held_out("test", CONTEXT) is None


def test_a_corpus_tells_what_holds_for_all_its_sources(folders: dict[str, Path], tmp_path: Path) -> None:
    def opened(*names: str) -> Corpus:
        return open_corpus({name: folders[name] for name in names})

    assert opened("fly", "human").soft_mask_bit
    assert not opened("fly", "yeast").soft_mask_bit
    assert opened("human", "fly").location == f"{folders['fly']}, {folders['human']}"
    fasta = tmp_path / "a.fa"
    fasta.write_text(">a\n" + "ACGT" * 30 + "\n>b\nAC\n")
    prepared = prepare([str(fasta)], tmp_path / "prepared", PrepareOptions(valid=0)).folder
    assert open_corpus({"a": prepared, "fly": folders["fly"]}).longest_record("train") == 120


def test_sources_of_either_layout_are_mixed(folders: dict[str, Path], tmp_path: Path) -> None:
    write_records(tmp_path, [random_records(1, [300] * 40)])
    corpus = open_corpus({"tars": tmp_path, "fly": folders["fly"]}, {"tars": 1.0, "fly": 3.0})
    reader = corpus.reader("train", CONTEXT)
    windows = corpus.order(reader, 0).windows(np.arange(2000))
    tokens = reader.read(windows)
    streams: list[Any] = [shards.stream(n) for shards in reader.shards for n in range(len(shards.tokens))]
    for shard, start, row in zip(windows.shard.tolist(), windows.start.tolist(), tokens.numpy(), strict=True):
        np.testing.assert_array_equal(row, streams[shard][start : start + CONTEXT])
    assert shares(corpus) == {"fly": 7500, "tars": 2500}
