"""Configuration: what wins over what, what is refused and with which words, and what a resumed run may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dnascale.config import HARDWARE_KEYS, PRESETS, Config, changes, load_config, parse, presets, to_yaml
from dnascale.errors import UsageError

ENOUGH = ["data.path=DATA", "train.steps=100"]


def nano(*overrides: str) -> Config:
    return load_config("nano", [*ENOUGH, *overrides])


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


# --- loading ---


@pytest.mark.parametrize("preset", presets())
def test_every_preset_loads_and_keeps_every_value_it_states(preset: str) -> None:
    stated = leaves(yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()))
    length = [] if {"train.epochs", "train.steps", "train.minutes"} & set(stated) else ["train.steps=1"]
    settled = leaves(load_config(preset, ["data.path=DATA", *length]).model_dump(mode="json"))
    assert {key: settled[key] for key in stated} == stated
    assert settled["data.path"] == "DATA"
    assert settled["run.dir"] == f"runs/{preset}"


def test_presets_are_those_documented() -> None:
    assert presets() == ["base", "book", "large", "mini", "nano", "small"]


def test_a_preset_without_data_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match=r"'data' is missing \(the data set folder or URL, e\.g\. data\.path=DATA\)"):
        load_config("book", [])


def test_overrides_win_over_the_file_which_wins_over_its_preset_which_wins_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "preset: nano\ndata: {path: FROM_FILE}\ntrain: {steps: 7, seed: 3}\noptimizer: {learning_rate: 0.5, weight_decay: 0.5}\n"
    )
    base = nano()
    settled = load_config(str(path), ["optimizer.learning_rate=0.25", "optimizer.betas=[0.5,0.75]"])
    assert settled.optimizer.learning_rate == 0.25  # override over file
    assert settled.optimizer.betas == (0.5, 0.75)  # override over preset
    assert (settled.data.path, settled.train.steps, settled.train.seed) == ("FROM_FILE", 7, 3)  # file over the rest
    assert settled.model == base.model  # preset
    assert settled.optimizer.weight_decay == 0.5  # file over preset
    assert settled.schedule.decay == 0.3  # preset over default
    assert settled.optimizer.eps == 1e-8  # default
    assert settled.run.dir == "runs/mine"
    assert load_config(str(path), ["run.dir=elsewhere"]).run.dir == "elsewhere"


def test_the_last_of_two_overrides_wins() -> None:
    assert nano("train.seed=1", "train.seed=2").train.seed == 2


def test_the_resolved_configuration_round_trips_through_its_yaml(tmp_path: Path) -> None:
    settled = nano(
        "optimizer.learning_rate=1e-5", "optimizer.eps=1e-12", "train.minutes=2.5", "log.wandb=offline", "run.dir=a b"
    )
    text = to_yaml(settled)
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(str(tmp_path / "config.yaml"), []) == settled
    assert parse(yaml.safe_load(text), "config.yaml") == settled
    assert to_yaml(load_config(str(tmp_path / "config.yaml"), [])) == text
    assert leaves(yaml.safe_load(text)).keys() == leaves(settled.model_dump()).keys()  # nothing is left to defaults


# --- refusals ---


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stpes=3", r"unknown key 'train\.stpes' \(did you mean 'train\.steps'\?\)"),
        ("optimiser.learning_rate=1", r"unknown key 'optimiser' \(did you mean 'optimizer'\?\)"),
        (
            "optimizer.lerning_rate=1",
            r"unknown key 'optimizer\.lerning_rate' \(did you mean 'optimizer\.learning_rate'\?\)",
        ),
        ("model.qqqqqq=1", r"unknown key 'model\.qqqqqq'$"),
        ("steps=100", r"unknown key 'steps' \(did you mean 'train\.steps'\?\)"),
        ("train.learning_rate=1", r"unknown key 'train\.learning_rate' \(did you mean 'optimizer\.learning_rate'\?\)"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        nano(override)


@pytest.mark.parametrize(
    "override",
    [
        "data.verify=maybe", "data.path=[1]", "model.layers=0", "model.layers=two", "model.context=-1",
        "model.hidden_size=1.5", "masking.rate=0", "masking.rate=0.95", "masking.replace_with_mask=1.5",
        "masking.repeat_weight=-1", "masking.repeat_weight=.inf", "optimizer.learning_rate=0",
        "optimizer.learning_rate=.inf", "optimizer.learning_rate=.nan", "optimizer.betas=[0.9]",
        "optimizer.betas=[0.9,1.0]", "optimizer.betas=[-0.1,0.9]", "optimizer.betas=[0.9,0.9,0.9]",
        "optimizer.betas=0.9", "optimizer.eps=0", "optimizer.weight_decay=-1", "optimizer.weight_decay=.nan",
        "optimizer.gradient_clip=-1", "schedule.warmup=1.5", "schedule.decay=-0.1", "schedule.final=2", "train.steps=0",
        "train.steps=1.5", "train.minutes=.inf", "train.epochs=0", "train.epochs=.inf", "train.seed=-1",
        "train.seed=9223372036854775808", "train.precision=fp16", "train.device=tpu", "train.processes=0",
        "checkpoint.every=0", "checkpoint.keep=0", "evaluation.windows=0", "log.every=0", "log.wandb=yes",
        "run.allow_change=perhaps", "run=5", "train=fast", "masking=null",
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_key(override: str) -> None:
    with pytest.raises(UsageError) as caught:
        nano(override)
    key = override.partition("=")[0]
    assert key in str(caught.value)
    assert str(caught.value).startswith("nano: ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.heads=3"], r"model\.hidden_size=128 must be an even multiple of model\.heads=3"),
        (["model.hidden_size=6", "model.heads=2"], "an even multiple"),
        (["masking.replace_with_random=0.5"], r"masking\.replace_with_mask \+ masking\.replace_with_random"),
        (["model.local_attention=1"], r"model\.local_attention.*greater than or equal to 2"),
        (["schedule.warmup=0.6", "schedule.decay=0.5"], r"schedule\.warmup \+ schedule\.decay must not exceed 1"),
        (["data.path=null"], r"say what to train on: data\.path .*, or data\.sources, and not both"),
        (["data.sources.a.path=x"], "not both"),
        (
            ["data.path=null", "data.sources={a: {path: x, weight: 1}, b: {path: y}}"],
            r"give every one of data\.sources a weight, or none",
        ),
        (["data.temperature=2"], r"data\.temperature is for several data\.sources without weights"),
        (["data.lane_windows=64"], r"data\.lane_windows needs data\.lanes"),
        (["train.steps=null"], r"say how long to train .*: train\.steps, train\.minutes or train\.epochs"),
        (
            ["train.global_batch_tokens=8193"],
            r"train\.global_batch_tokens=8193 must be a multiple of model\.context=256",
        ),
        (["train.micro_batch_tokens=100"], r"train\.micro_batch_tokens=100 must be a multiple"),
    ],
)
def test_values_that_do_not_fit_together_are_refused_with_their_keys(overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        nano(*overrides)


def test_several_wrong_keys_are_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'train\.a'; unknown key 'train\.b'"):
        nano("train.a=1", "train.b=2")


@pytest.mark.parametrize(
    "override", ["steps", "=3", " =3", "train.steps=[1", "model.context=${nothing.there}", "optimizer.betas.0=1"]
)
def test_what_is_no_override_is_a_usage_error(override: str) -> None:
    with pytest.raises(UsageError):
        nano(override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "is not a configuration"),
        ("a: [1\n", "cannot be read as configuration"),
        ("", "'data' is missing"),
        ("just words\n", "."),
        ("preset: nan\n", r"unknown preset 'nan' \(did you mean 'nano'\?\); there are: base, book, large, mini, nano"),
        ("run: 5\n", "run"),
        ("preset: nano\nmodel: [1]\n", "cannot be read as configuration"),
        ("\udcff\udcfe", "cannot be read as configuration"),
    ],
)
def test_a_file_that_is_no_configuration_is_a_usage_error(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=words):
        load_config(str(path), [])


def test_a_source_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such configuration file"):
        load_config(str(tmp_path / "none.yaml"), [])
    with pytest.raises(UsageError, match=r"unknown preset 'boook' \(did you mean 'book'\?\)"):
        load_config("boook", [])


# --- changes on resume ---


def test_hardware_keys_may_change_and_every_other_key_is_shown() -> None:
    before = nano()
    assert changes(before, before) == []
    free = nano(
        "data.path=OTHER", "data.verify=size", "data.workers=2", "data.cache=C", "data.cache_limit_gb=1", "train.micro_batch_tokens=256", "train.engine=zero3",
        "train.device=cpu", "train.processes=4", "checkpoint.every=7", "checkpoint.keep=9", "evaluation.every=3",
        "log.every=2", "log.wandb=offline", "run.dir=elsewhere", "run.allow_change=true",
    )  # fmt: skip
    assert changes(before, free) == []
    other = nano("optimizer.learning_rate=1", "train.seed=4", "train.steps=200", "masking.rate=0.5")
    assert set(changes(before, other)) == {
        f"optimizer.learning_rate: {before.optimizer.learning_rate} -> 1.0", "train.seed: 0 -> 4",
        "train.steps: 100 -> 200", f"masking.rate: {before.masking.rate} -> 0.5",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_every_leaf_is_either_free_to_change_or_reported() -> None:
    before = nano()
    for key, value in leaves(before.model_dump()).items():
        section, name = key.split(".")
        changed_section = getattr(before, section).model_copy(update={name: f"not {value}"})
        found = changes(before, before.model_copy(update={section: changed_section}))
        free = any(key == hardware or key.startswith(f"{hardware}.") for hardware in HARDWARE_KEYS)
        assert [line.split(":")[0] for line in found] == ([] if free else [key])


def test_a_source_may_move_and_neither_its_weight_nor_the_set_of_sources_may_change() -> None:
    def mixed(*overrides: str) -> Config:
        sources = [
            "data.sources.a.path=A",
            "data.sources.a.weight=1",
            "data.sources.b.path=B",
            "data.sources.b.weight=2",
        ]
        return load_config("nano", [*sources, "train.steps=1", *overrides])

    assert mixed().data.locations() == {"a": "A", "b": "B"}
    assert mixed().data.weights() == {"a": 1.0, "b": 2.0}
    assert changes(mixed(), mixed("data.sources.a.path=https://host/a")) == []
    assert changes(mixed(), mixed("data.sources.b.weight=3")) == ["data.sources.b.weight: 2.0 -> 3.0"]
    for other in (mixed("data.sources.c={path: C, weight: 1}"), nano()):
        assert changes(mixed(), other)
        assert changes(other, mixed())


def test_hardware_keys_exist() -> None:
    known = leaves(nano().model_dump())
    for hardware in HARDWARE_KEYS:
        assert any(key == hardware or key.startswith(f"{hardware}.") for key in known), hardware


def test_a_misspelled_key_of_a_source_is_named_with_the_right_one() -> None:
    with pytest.raises(
        UsageError, match=r"unknown key 'data\.sources\.h\.wieght' \(did you mean 'data\.sources\.h\.weight'"
    ):
        load_config("nano", ["data.sources={h: {path: x, wieght: 3}}", "train.steps=1"])


@pytest.mark.parametrize("name", ["2024_01_15", "010", "12:30", "1e3", "007", "true", "2024-01-15", "run #1"])
def test_the_name_of_a_folder_is_taken_as_it_is_written(name: str) -> None:
    for key in ("run.dir", "data.path"):
        settled = nano(f"{key}={name}")
        assert (settled.run.dir if key == "run.dir" else settled.data.path) == name
    assert nano("data.path=null", f"data.sources.a.path={name}").data.locations() == {"a": name}


def test_a_number_in_place_of_a_folder_in_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: nano\ndata: {path: 1_000}\ntrain: {steps: 1}\n")
    with pytest.raises(UsageError, match=r"'data.path: 1000' is read as a number: put what was meant in quotes"):
        load_config(str(path), [])
