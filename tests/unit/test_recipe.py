"""A recipe: sources with options of their own, in one folder that stands for their mixture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fasta import random_fasta, tree, write

from dnascale.cli.data import inspect, verify
from dnascale.config import load_config
from dnascale.data.corpus import open_corpus
from dnascale.data.prepare import Crew, PrepareOptions, Unfinished, prepare
from dnascale.data.prepare.recipe import carry_out_recipe, load_recipe
from dnascale.data.prepare.tasks import Progress
from dnascale.data.shards import Dataset, load_dataset
from dnascale.errors import DataError, UsageError

RECIPE = """
sources:
  human: {{inputs: "{folder}/h*.fa", valid: 0.3, weight: 3}}
  yeast: {{inputs: ["{folder}/y.fa"], min_length: 20, weight: 1}}
options: {{soft_mask: true, max_leakage: null}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for seed, name in enumerate(("h1", "h2", "y")):
        write(tmp_path / f"{name}.fa", [(name + header, bases) for header, bases in random_fasta(seed)])
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def test_each_source_is_what_it_is_prepared_alone_and_the_folder_stands_for_the_mixture(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = carry_out_recipe(load_recipe(recipe), out, Crew(), Progress())
    human = PrepareOptions(valid=0.3, soft_mask=True, max_leakage=None)
    alone = prepare([f"{tmp_path}/h*.fa"], tmp_path / "alone" / "human", human)
    assert tree(out / "human") == tree(alone.folder)
    assert {path.name for path in out.iterdir()} == {"human", "yeast", "mixture.yaml"}
    assert [one.name for one in done.values() if isinstance(one, Dataset)] == ["human", "yeast"]

    out.rename(tmp_path / "moved")
    config = load_config("nano", [f"data.path={tmp_path}/moved", "train.steps=1"])
    assert config.data.weights() == {"human": 3.0, "yeast": 1.0}
    corpus = open_corpus(config.data.locations(), config.data.weights())
    assert corpus.sources["human"].fingerprint == alone.fingerprint


def test_a_mixture_is_inspected_and_verified_source_by_source(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = carry_out_recipe(load_recipe(recipe), out, Crew(), Progress())
    inspect(str(out), as_json=True)
    shown = json.loads(capsys.readouterr().out)["sources"]
    assert {name: one["fingerprint"] for name, one in shown.items()} == {
        name: one.fingerprint for name, one in done.items() if isinstance(one, Dataset)
    }
    verify(str(out))
    with (out / "yeast" / "train" / "shard-000000.tar").open("r+b") as tar:
        tar.seek(512)
        tar.write(b"\x7f")
    with pytest.raises(DataError, match="yeast is damaged"):
        verify(str(out))


def test_ranks_prepare_a_recipe_together_and_a_rerun_uses_what_is_whole(recipe: Path, tmp_path: Path) -> None:
    carry_out_recipe(load_recipe(recipe), tmp_path / "one" / "out", Crew(), Progress())
    out = tmp_path / "two" / "out"
    for rank in (0, 1, 0, 1, 0, 1):
        done = carry_out_recipe(load_recipe(recipe), out, Crew(1, rank, 2, part=True), Progress())
        assert all(isinstance(one, Unfinished | Dataset) for one in done.values())
    assert tree(out) == tree(tmp_path / "one" / "out")

    text = recipe.read_text()
    recipe.write_text(text.replace("weight: 3", "weight: 3, group: '('"))
    with pytest.raises(UsageError, match=r"sources\.human: --group '\(' is not a regular expression"):
        load_recipe(recipe)
    (tmp_path / "y.fa").write_text("no sequence\n")
    recipe.write_text(text)
    third = tmp_path / "three" / "out"
    with pytest.raises(DataError):
        carry_out_recipe(load_recipe(recipe), third, Crew(), Progress())
    assert not third.exists()
    kept = tmp_path / "three" / "out.preparing" / "human" / "dataset.json"
    made = kept.stat().st_mtime_ns
    write(tmp_path / "y.fa", random_fasta(9))
    carry_out_recipe(load_recipe(recipe), third, Crew(), Progress())
    assert (third / "human" / "dataset.json").stat().st_mtime_ns == made


def test_without_weights_the_temperature_goes_into_the_mixture(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace(", weight: 3", "").replace(", weight: 1", "") + "temperature: 2\n")
    carry_out_recipe(load_recipe(recipe), tmp_path / "out", Crew(), Progress())
    config = load_config("nano", [f"data.path={tmp_path}/out", "train.steps=1"])
    assert config.data.weights() is None
    assert config.data.temperature == 2.0


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("min_length", "min_lenght", r"sources\.yeast: unknown key 'min_lenght' \(did you mean 'min_length'\?\)"),
        ("soft_mask: true", "soft_mask: maybe", r"options\.soft_mask='maybe'"),
        ("soft_mask: true", "seed: one", "seed='one'"),
        ("human:", "../human:", "becomes a folder"),
        ("weight: 3", "? [a, b] : 3", "unhashable key"),
        ("weight: 3", "weight: &a [*a]", "above 0"),
        ("yeast:", "human:", r"line \d+, column 3: the key 'human' is there twice"),
        ("inputs: [", "input: [", "unknown key 'input'"),
        ("weight: 3", "weight: -3", "above 0"),
        ("weight: 3", "seed: 3", "every source a weight"),
        ("weight: 3", "weight: 3, tokenizer: 'kmer:6'", "the same for all sources"),
        ("sources:", "source:", r"unknown key 'source' \(did you mean 'sources'"),
        ("options:", "temperature: 2\noptions:", "without weights"),
        ("valid: 0.3", "valid: 1.3", r"sources\.human: --valid 1.3"),
    ],
)
def test_a_wrong_recipe_is_a_usage_error_that_names_the_place(
    recipe: Path, before: str, after: str, words: str
) -> None:
    text = recipe.read_text()
    assert before in text
    recipe.write_text(text.replace(before, after, 1))
    with pytest.raises(UsageError, match=words):
        load_recipe(recipe)


def test_a_recipe_whose_first_input_is_unusable_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.fa").touch()
    (tmp_path / "recipe.yaml").write_text(f"sources: {{a: {{inputs: {tmp_path}/a.fa}}}}")
    with pytest.raises(DataError, match="the file is empty"):
        carry_out_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "out", Crew(), Progress())
    assert {path.name for path in tmp_path.iterdir()} == {"a.fa", "recipe.yaml"}


def test_a_mixture_is_no_data_set_and_says_so(recipe: Path, tmp_path: Path) -> None:
    carry_out_recipe(load_recipe(recipe), tmp_path / "out", Crew(), Progress())
    with pytest.raises(DataError, match="out is a mixture of data sets, each in a folder of its own"):
        load_dataset(tmp_path / "out")


def test_an_error_in_the_sequences_of_a_source_names_the_source(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("valid: 0.3", "valid: chr99"))
    with pytest.raises(UsageError, match=r"^sources\.human: --valid chr99: no record is in a group of that name"):
        carry_out_recipe(load_recipe(recipe), tmp_path / "out", Crew(), Progress())


def test_a_damaged_mixture_is_a_data_error(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mixture.yaml").write_text("sources: [")
    with pytest.raises(DataError, match=r"mixture\.yaml is no mixture"):
        load_config("nano", [f"data.path={tmp_path}", "train.steps=1"])
