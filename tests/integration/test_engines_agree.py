"""The same configuration and data on every engine: the same global batches, the same losses within rounding."""

from pathlib import Path
from typing import Any

import pytest
from jobs import DEEPSPEED, metrics, numbers, require_deepspeed, train

from dnascale.data.shards import Dataset

STEPS = 6  # bf16 is slow on many CPUs
MODES = {"plain": (1, "plain"), "ddp": (2, "plain")}
if DEEPSPEED:
    MODES |= {"zero1": (2, "zero1"), "zero2": (2, "zero2"), "zero3": (2, "zero3")}
Curves = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def curves(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    folder = tmp_path_factory.mktemp("engines")
    return {
        mode: train(
            folder / mode, human_cds, f"train.steps={STEPS}", "train.precision=bf16", processes=processes, engine=engine
        )
        for mode, (processes, engine) in MODES.items()
    }


def test_every_engine_trains_on_the_same_global_batches(curves: Curves) -> None:
    digests = {mode: [line["windows_digest"] for line in lines] for mode, lines in curves.items()}
    assert len(digests["plain"]) == STEPS
    assert len(set(digests["plain"])) == STEPS
    for mode in MODES:
        assert digests[mode] == digests["plain"], mode


def test_every_engine_has_the_same_losses_within_bf16_rounding(curves: Curves) -> None:
    for mode in MODES:
        for line, reference in zip(curves[mode], curves["plain"], strict=True):
            assert line["loss"] == pytest.approx(reference["loss"], rel=0.01), (mode, line["step"])


def test_zero_stages_agree_more_closely_with_each_other(curves: Curves) -> None:
    for mode in MODES.keys() & {"zero2", "zero3"}:
        for line, reference in zip(curves[mode], curves["zero1"], strict=True):
            assert line["loss"] == pytest.approx(reference["loss"], rel=0.003), (mode, line["step"])


def test_every_engine_uses_the_same_learning_rates(curves: Curves) -> None:
    for mode in MODES:
        assert [line["learning_rate"] for line in curves[mode]] == [line["learning_rate"] for line in curves["plain"]]


def test_every_engine_learns(curves: Curves) -> None:
    for mode in MODES:
        assert curves[mode][-1]["loss"] < curves[mode][0]["loss"] - 0.3, mode


def test_fp32_losses_agree_to_rounding(human_cds: Dataset, tmp_path: Path) -> None:
    common = ("train.steps=8", "train.precision=fp32")
    alone = train(tmp_path / "alone", human_cds, *common)
    for engine, processes in (("plain", 2), ("zero2", 2)):
        lines = train(tmp_path / engine, human_cds, *common, processes=processes, engine=engine)
        for line, reference in zip(lines, alone, strict=True):
            assert line["loss"] == pytest.approx(reference["loss"], rel=2e-5), engine
            assert line["gradient_norm"] == pytest.approx(reference["gradient_norm"], rel=1e-3), engine


@pytest.mark.parametrize(
    "optimizer", ["muon", *(pytest.param(o, marks=pytest.mark.slow) for o in ("stable_adamw", "adafactor"))]
)
def test_every_optimizer_makes_the_same_steps_on_every_engine(
    human_cds: Dataset, tmp_path: Path, optimizer: str
) -> None:
    common = ("train.steps=5", "train.precision=fp32", f"optimizer.name={optimizer}", "optimizer.gradient_clip=0")
    alone = train(tmp_path / "alone", human_cds, *common)
    for engine in ("plain", "zero1", "zero3") if DEEPSPEED else ("plain",):
        lines = train(tmp_path / engine, human_cds, *common, processes=2, engine=engine)
        for line, reference in zip(lines, alone, strict=True):
            assert line["loss"] == pytest.approx(reference["loss"], rel=1e-4), engine


def test_accumulation_does_not_change_the_run(human_cds: Dataset, tmp_path: Path) -> None:
    common = ("train.steps=6", "train.precision=fp32")
    runs = [
        train(tmp_path / str(micro), human_cds, *common, f"train.micro_batch_tokens={micro}") for micro in (512, 2048)
    ]
    for small, large in zip(*runs, strict=True):
        assert small["windows_digest"] == large["windows_digest"]
        assert small["loss"] == pytest.approx(large["loss"], rel=2e-5)


@pytest.mark.parametrize("engine", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_hundreds_of_micro_batches_add_up_to_the_same_gradient_in_bf16(
    human_cds: Dataset, tmp_path: Path, engine: str
) -> None:
    require_deepspeed()
    common = ("train.steps=1", "train.precision=bf16", "train.global_batch_tokens=32768", "train.micro_batch_tokens=64")
    (alone,) = train(tmp_path / "plain", human_cds, *common)
    (line,) = train(tmp_path / engine, human_cds, *common, engine=engine)
    assert line["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=0.02)


def test_validation_loss_is_the_same_on_every_engine(human_cds: Dataset, tmp_path: Path) -> None:
    losses = []
    for processes, engine in ((1, "plain"), (2, "plain"), (2, "zero3")):
        run = tmp_path / f"{engine}{processes}"
        common = ("train.steps=3", "train.precision=fp32", "evaluation.every=1")
        train(run, human_cds, *common, processes=processes, engine=engine if DEEPSPEED else "plain")
        losses.append([line["valid_loss"] for line in metrics(run, "valid")])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("processes", "engine"),
    [(1, "plain"), *(pytest.param(2, engine, marks=pytest.mark.slow) for engine in ("plain", "zero2", "zero3"))],
)
def test_recomputed_layers_change_no_number(human_cds: Dataset, tmp_path: Path, processes: int, engine: str) -> None:
    common = ("train.steps=3", "train.precision=fp32")
    plain, again = (
        train(tmp_path / how, human_cds, *common, f"train.recompute={how}", processes=processes, engine=engine)
        for how in ("false", "layers")
    )
    assert numbers(plain) == numbers(again)
