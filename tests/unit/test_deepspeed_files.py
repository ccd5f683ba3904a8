"""ds_configs/: every key is one that the installed DeepSpeed reads, and one that the reference explains."""

import json
import re
from collections.abc import Iterator, KeysView
from pathlib import Path
from typing import Any

import pytest

from dnascale.config import load_config
from dnascale.errors import UsageError
from dnascale.train.engines import deepspeed_config, require_few_in_bf16
from dnascale.train.engines.deepspeed import STAGES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dnascale" / "ds_configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.json"))


class Watched(dict[str, Any]):
    """A configuration, or a section of one, that knows which of its keys were read."""

    def __init__(self, values: dict[str, Any], sections: bool = True) -> None:
        watched = {k: Watched(v, sections=False) if sections and isinstance(v, dict) else v for k, v in values.items()}
        super().__init__(watched)
        self.read: set[str] = set()

    def __iter__(self) -> Iterator[str]:  # without it ** would copy behind our back
        return super().__iter__()

    def keys(self) -> Any:
        return KeysView(self)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def unread(self, prefix: str = "") -> list[str]:
        """What lies deeper than a section goes to pydantic, which refuses unknown keys."""
        own = [prefix + key for key in self if key not in self.read]
        sections = [(key, value) for key, value in self.items() if isinstance(value, Watched) and key in self.read]
        return own + [name for key, value in sections for name in value.unread(f"{key}.")]


def parse_by_deepspeed(values: dict[str, Any]) -> list[str]:
    """The keys that DeepSpeed did not read. Raises what DeepSpeed raises."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    watched = Watched(values)
    config = DeepSpeedConfig.__new__(DeepSpeedConfig)
    config._param_dict = watched
    config._initialize_params(watched)
    return watched.unread()


def filled(name: str, *overrides: str) -> dict[str, Any]:
    settings = ["data.path=x", "train.steps=1", "train.precision=bf16", "optimizer.name=adamw", f"train.engine={name}"]
    config = load_config("nano", [*settings, *overrides])
    values = deepspeed_config(config, micro_windows=4, accumulation=1, world=2)
    assert values is not None
    return values


@pytest.mark.parametrize("name", FILES)
def test_deepspeed_reads_every_key(name: str) -> None:
    assert parse_by_deepspeed(filled(name)) == []


def test_a_key_that_deepspeed_does_not_know_is_noticed() -> None:
    assert parse_by_deepspeed({**filled("zero1"), "overlap_comm": True}) == ["overlap_comm"]
    for section in ({"overlap_com": True}, {"offload_param": {"device": "cpu", "pinned": True}}):
        with pytest.raises(ValueError, match=r"overlap_com|pinned"):
            parse_by_deepspeed({**filled("zero1"), "zero_optimization": {"stage": 1, **section}})


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_left_to_be_filled(name: str) -> None:
    assert "auto" not in json.dumps(filled(name))


def test_every_file_has_an_engine_of_its_name() -> None:
    assert set(STAGES) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_timer_that_waits_for_the_device_in_each_micro_batch_is_off(name: str) -> None:
    assert json.loads((FOLDER / f"{name}.json").read_text())["timers"]["throughput"] == {"enabled": False}


def test_the_reference_explains_every_key() -> None:
    page = (ROOT / "docs" / "reference" / "deepspeed.md").read_text()
    explained = set(re.findall(r"`([a-z0-9_.]+)`", page))

    def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
        return [
            name
            for key, value in values.items()
            for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
        ]

    for name in FILES:
        for key in leaves(json.loads((FOLDER / f"{name}.json").read_text())):
            short = key.removeprefix("zero_optimization.")
            assert explained & {key, short}, f"{key} of {name}.json is not explained"


def test_the_folder_at_the_top_is_the_one_in_the_package() -> None:
    assert (ROOT / "ds_configs").is_symlink()
    assert (ROOT / "ds_configs").resolve() == FOLDER.resolve()


def test_two_runs_never_share_a_folder_on_the_nvme_disk() -> None:
    paths = {
        filled("zero3_nvme", f"run.dir=runs/{run}")["zero_optimization"]["offload_optimizer"]["nvme_path"]
        for run in ("one", "two")
    }
    assert len(paths) == 2


def test_an_offload_of_ones_own_is_kept(tmp_path: Path) -> None:
    values = json.loads((FOLDER / "zero3_nvme.json").read_text())
    values["zero_optimization"]["offload_optimizer"]["nvme_path"] = "/scratch/me"
    own = tmp_path / "own.json"
    own.write_text(json.dumps(values))
    assert filled(str(own))["zero_optimization"]["offload_optimizer"]["nvme_path"] == "/scratch/me"


def test_a_value_that_the_run_decides_is_refused(tmp_path: Path) -> None:
    values = json.loads((FOLDER / "zero2.json").read_text()) | {"gradient_accumulation_steps": 7}
    own = tmp_path / "own.json"
    own.write_text(json.dumps(values))
    with pytest.raises(UsageError, match="gradient_accumulation_steps=7"):
        filled(str(own))


def test_many_gradients_are_added_up_in_fp32_or_not_at_all() -> None:
    def of(engine: str, accumulation: int, precision: str = "bf16") -> dict[str, Any]:
        config = load_config("book", ["data.path=x", f"train.engine={engine}", f"train.precision={precision}"])
        values = deepspeed_config(config, micro_windows=1, accumulation=accumulation, world=1)
        assert values is not None
        return values

    for engine in ("zero2", "zero3", "zero3_offload"):
        assert of(engine, 2)["data_types"] == {"grad_accum_dtype": "fp32"}
        assert "data_types" not in of(engine, 1)
        assert "data_types" not in of(engine, 512, "fp32")
    assert "data_types" not in of("zero1", 64)
    with pytest.raises(UsageError, match="gradients of 65 micro-batches in bf16"):
        of("zero1", 65)
    of("zero1", 65, "fp32")


def test_gradients_in_bf16_are_counted_when_auto_is_settled() -> None:
    config = load_config(
        "book", ["data.path=x", "train.engine=zero1", "train.precision=bf16", "train.micro_batch_tokens=auto"]
    )
    values = deepspeed_config(config, micro_windows=1, accumulation=512, world=1)
    assert values is not None
    require_few_in_bf16(config, values, 64)
    with pytest.raises(UsageError, match=r"train\.engine=zero1 adds up the gradients of 65 micro-batches in bf16"):
        require_few_in_bf16(config, values, 65)


def test_what_nobody_fills_in_is_named(tmp_path: Path) -> None:
    values = json.loads((FOLDER / "zero3.json").read_text())
    values["zero_optimization"] |= {"reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    own = tmp_path / "own.json"
    own.write_text(json.dumps(values))
    with pytest.raises(
        UsageError, match=r"zero_optimization\.reduce_bucket_size, zero_optimization\.stage3_prefetch_bucket_size\."
    ):
        filled(str(own))


def test_state_on_nvme_is_for_adamw_alone() -> None:
    config = load_config("nano", ["data.path=x", "train.steps=1", "train.engine=zero3_nvme", "optimizer.name=muon"])
    with pytest.raises(UsageError, match=r"use optimizer\.name=adamw, or offload to memory"):
        deepspeed_config(config, 4, 1, 1)


@pytest.mark.parametrize(
    ("section", "key"), [("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")]
)
def test_a_file_that_would_train_on_gradients_that_are_not_finite_is_refused(
    section: str, key: str, tmp_path: Path
) -> None:
    values = json.loads((FOLDER / "zero1.json").read_text())
    values[section][key] = False
    path = tmp_path / "own.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=f"{section}.{key}=false"):
        filled(str(path))
