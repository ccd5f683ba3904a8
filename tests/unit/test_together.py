"""Data sets that were prepared apart and come together: held-out records of one that another trains on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fasta import write

from dnascale.data.inspect import content_of
from dnascale.data.merge import merge
from dnascale.data.prepare import Crew, PrepareOptions, prepare
from dnascale.data.prepare.recipe import carry_out_recipe, load_recipe
from dnascale.data.prepare.tasks import Progress, Stage
from dnascale.data.shards import Dataset
from dnascale.data.together import check_together
from dnascale.errors import DataError, UsageError

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def random_bases(rng: random.Random, length: int = 600) -> str:
    return "".join(rng.choices("ACGT", k=length))


@pytest.fixture(scope="module")
def genes() -> list[str]:
    rng = random.Random(5)
    return [random_bases(rng) for _ in range(30)]


def prepared(folder: Path, name: str, genes: list[str], tokenizer: str = "character") -> Dataset:
    """Genes 0, 1, 2, ... under names of their own, the first five held out; small shards, so that records cross their ends."""
    source = write(folder / f"{name}.fa", [(f"{name}{number}", bases) for number, bases in enumerate(genes)])
    valid = ",".join(f"{name}{number}" for number in range(5))
    options = PrepareOptions(group="record", valid=valid, tokenizer=tokenizer)
    return prepare([source], folder / name, options, block_tokens=512, shard_blocks=2)


def together(one: Dataset, other: Dataset, most: float, folder: Path) -> list[str]:
    return check_together({"one": one, "other": other}, {"one": most, "other": most}, folder, lambda _: None)


@pytest.mark.parametrize("tokenizer", ["character", "kmer:3", "kmer:3:overlap"])
def test_held_out_records_that_others_train_on_are_counted_on_either_strand_in_any_tokens(
    genes: list[str], tmp_path: Path, tokenizer: str
) -> None:
    """The second trains on two of the first's five held-out genes, one of them as its other strand."""
    one = prepared(tmp_path, "a", genes[:15], tokenizer)
    other = prepared(tmp_path, "b", [*genes[15:], genes[0], genes[1][::-1].translate(COMPLEMENT)], tokenizer)
    assert together(one, other, 0.5, tmp_path) == [
        "valid of one: 40.0% (2 of 5 records) stands in the training data of others"
    ]
    with pytest.raises(
        DataError, match=r"the valid split of one leaks: 40\.0% of it \(2 of 5 records\).*worst: a[01], a[01]"
    ):
        together(one, other, 0.1, tmp_path)
    assert together(one, other, 1.0, tmp_path) == []


def test_what_both_hold_out_and_what_both_train_on_is_no_leak(genes: list[str], tmp_path: Path) -> None:
    one, other = prepared(tmp_path, "a", genes[:15]), prepared(tmp_path, "b", genes[:15])
    assert together(one, other, 0.0, tmp_path) == []


def test_merged_data_sets_are_refused_when_they_leak_or_warned_of(genes: list[str], tmp_path: Path) -> None:
    parts = [
        str(prepared(tmp_path, "a", genes[:15]).folder),
        str(prepared(tmp_path, "b", [*genes[15:], genes[0]]).folder),
    ]
    with pytest.raises(DataError, match=r"the valid split of \S+ leaks: 20\.0%"):
        merge(parts, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(UsageError, match="--max-leakage 2"):
        merge(parts, tmp_path / "merged", max_leakage=2)
    merged = merge(parts, tmp_path / "merged", max_leakage=0.2)
    assert any("20.0% (1 of 5 records)" in warning for warning in merged.cleaning["warnings"])


def test_sources_of_a_recipe_are_compared_and_nothing_appears_when_they_leak(genes: list[str], tmp_path: Path) -> None:
    write(tmp_path / "a.fa", [(f"a{number}", bases) for number, bases in enumerate(genes[:15])])
    write(tmp_path / "b.fa", [(f"b{number}", bases) for number, bases in enumerate([*genes[15:], *genes[:2]])])
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    text = (
        f"sources:\n  first: {{inputs: {tmp_path}/a.fa, valid: 'a0,a1,a2,a3,a4', max_leakage: LIMIT}}\n"
        f"  second: {{inputs: {tmp_path}/b.fa, valid: b0}}\noptions: {{group: record}}\n"
    )
    recipe.write_text(text.replace("LIMIT", "0.1"))
    with pytest.raises(DataError, match=r"the valid split of first leaks: 40\.0%"):
        carry_out_recipe(load_recipe(recipe), out, Crew(), Progress())
    assert not out.exists()
    recipe.write_text(text.replace("LIMIT", "0.4"))
    told: list[str] = []

    class Told(Progress):
        def note(self, sentence: str) -> None:
            told.append(sentence)

    carry_out_recipe(load_recipe(recipe), out, Crew(), Told())
    assert "valid of first: 40.0% (2 of 5 records) stands in the training data of others" in told
    assert (out / "mixture.yaml").exists()


@pytest.mark.parametrize("tokenizer", ["character", "kmer:6"])
def test_the_comparison_of_sources_ends_at_the_size_that_it_began_with(
    tokenizer: str, genes: list[str], tmp_path: Path
) -> None:
    for name, part in (("a", genes[:10]), ("b", genes[10:])):
        write(tmp_path / f"{name}.fa", [(f"{name}{number}", bases) for number, bases in enumerate(part)])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"sources:\n  first: {{inputs: {tmp_path}/a.fa, valid: a0}}\n  second: {{inputs: {tmp_path}/b.fa, valid: b0}}\n"
        f"options: {{group: record, tokenizer: '{tokenizer}', max_leakage: 0.99}}\n"
    )

    class Compared(Progress):
        size = done = 0
        now = ""

        def begin(self, stage: Stage, tasks: int, size: int) -> None:
            self.now, self.size = stage, size

        def advance(self, bases: int) -> None:
            self.done += bases if self.now == "comparing" else 0

    progress = Compared()
    carry_out_recipe(load_recipe(recipe), tmp_path / "out", Crew(), progress)
    assert progress.now == "comparing"
    assert progress.done == progress.size > 0


def test_lengths_are_those_of_the_pieces_that_runs_of_n_leave(tmp_path: Path) -> None:
    """A piece begins in the middle of its sequence, and is a record of its own."""
    rng = random.Random(1)
    parts = [random_bases(rng, length) for length in (300, 700, 500)]
    source = write(tmp_path / "a.fa", [("chr", ("N" * 50).join(parts))])
    made = prepare([source], tmp_path / "out", PrepareOptions(valid=0, max_n_run=10), block_tokens=512, shard_blocks=1)
    lengths = content_of(made)["train"].lengths
    assert lengths is not None
    assert (lengths.shortest, lengths.median, lengths.longest) == (300, 500, 700)
    assert sum(bin.records for bin in lengths.bins) == 3
