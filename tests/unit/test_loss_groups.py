"""Losses by group, against sums over one prediction after the other."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dnascale.config import GuardConfig, ModelConfig
from dnascale.data.masking import Masking
from dnascale.data.order import Windows
from dnascale.model.loss_groups import GROUPS
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.train import meter
from dnascale.train.guard import Guard, TakenStep
from dnascale.train.meter import Meter, Speed
from dnascale.train.state import TrainState
from dnascale.train.stragglers import ForwardClock
from dnascale.vocab import CHARACTER

MODEL = ModelConfig(hidden_size=16, layers=2, heads=2, intermediate_size=16, context=64, initializer_range=0.5)


@pytest.mark.parametrize("repeat_weight", [0.0, 0.5])
def test_groups_are_summed_over_the_right_predictions(repeat_weight: float) -> None:
    masking = Masking(CHARACTER, 0.5, 0.6, 0.2, False, repeat_weight)
    module = MaskedLanguageModel(build(MODEL, CHARACTER), masking, separate_records=False).eval()
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 6, (5, 64)) | (rng.random((5, 64)) < 0.4) << 7  # 4 and 5 are not predicted
    tokens, keys = torch.from_numpy(stored.astype(np.uint8)), torch.from_numpy(rng.integers(0, 2**62, 5))
    with torch.no_grad():
        loss, sums = module(tokens, keys)
        batch = masking(tokens, keys, module.complement)
        nats = functional.cross_entropy(
            module.logits(batch.input_ids).transpose(1, 2), torch.from_numpy(stored & 127), reduction="none"
        )
    expected: dict[str, list[float]] = {group: [] for group in (*GROUPS, "all", "masked")}
    for row in range(5):
        for place in batch.positions[row].tolist():
            true, shown = int(stored[row, place] & 127), int(batch.input_ids[row, place])
            soft, one = bool(stored[row, place] & 128), float(nats[row, place])
            if true > 3:
                continue
            if shown == CHARACTER.mask:
                expected["acgt"[true]].append(one)
                expected["repeats" if soft else "outside_repeats"].append(one)
            elif shown != true:
                expected["random"].append(one)
    found = dict(zip(GROUPS, sums[6:].view(-1, 2).tolist(), strict=True))
    for group in ("a", "c", "g", "t", "repeats", "outside_repeats"):
        assert found[group] == pytest.approx([sum(expected[group]), len(expected[group])], rel=1e-4), group
    # A random base may be the true one: those are random too, and all others are kept.
    assert found["random"][1] > len(expected["random"])
    hidden = found["repeats"][1] + found["outside_repeats"][1]
    predicted = sum(int(stored[r, p] & 127) < 4 for r in range(5) for p in batch.positions[r].tolist())
    assert found["random"][1] + found["kept"][1] + hidden == predicted
    assert found["kept"][1] > 0
    assert float(loss) == pytest.approx(float(sums[0]) / batch.labels.numel())
    # What is compared with evaluation counts repeats whatever their weight.
    of_bases = [sum(found[group][place] for group in "acgt") for place in (0, 1)]
    assert sums[4:6].tolist() == pytest.approx(of_bases, rel=1e-4)


def accelerator(device: str = "cpu") -> Any:
    return SimpleNamespace(device=torch.device(device), reduce=lambda t, reduction: t, gather=lambda t: t)


def of_loss(value: float) -> torch.Tensor:
    sums = torch.zeros(6 + 2 * len(GROUPS))
    sums[:6] = torch.tensor([value, 1.0, value, 1.0, value, 1.0])
    sums[6 + 2 * GROUPS.index("a") :][:2] = torch.tensor([2.0, 4.0])
    return sums


CLOCK = ForwardClock(torch.device("cpu"))
GUARD = Guard(GuardConfig(), torch.device("cpu"), TrainState(9))


def stepped(one: Meter, norm: float = 1.0, tokens: int = 10, flops: float = 1.0, left_out: bool = False) -> None:
    one.stepped(TakenStep(7, 60, 10, 1, 0.1), torch.tensor(norm), torch.tensor(left_out), tokens, flops)


def line_of(one: Meter, state: TrainState, epoch_windows: int) -> dict[str, Any]:
    line, skips = one.line(state, epoch_windows)
    assert line is not None
    assert not skips
    return line


def test_a_line_has_rates_by_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one = Meter(
        accelerator(), Speed(peak=1e6, matmul=5e5, bases_per_token=0.5), GUARD, CLOCK, by_base=True, repeats=False
    )
    for tokens, flops in ((1000, 30.0), (3000, 50.0)):
        with one.waiting():
            now[0] += 0.25
        now[0] += 0.75
        one.add(Windows.empty(0), of_loss(1.25))
        stepped(one, 0.5, tokens, flops)
    with one.paused():
        now[0] += 1000
    state = TrainState(10, step=2, tokens=4000, position=40)
    line = line_of(one, state, 20)
    assert line["loss"] == line["masked_loss"] == line["nats_per_base"] == 1.25
    assert line["epoch"] == 2.0
    assert line["tokens_per_second"] == 2000.0
    assert line["bases_per_second"] == 1000.0
    assert line["mfu"] == pytest.approx((1000 * 30 + 3000 * 50) / 2.0 / 1e6)
    assert line["share_of_matmul"] == pytest.approx(2 * line["mfu"])
    assert line["data_wait"] == line["data_wait_max"] == 0.25
    assert line["step_seconds_min"] == line["step_seconds_max"] == 1.0
    assert line["seconds"] == 2.0
    assert line["loss_a"] == 0.5
    assert not {"loss_c", "loss_kept", "loss_repeats"} & line.keys()
    assert 0.01 < line["memory_gb"] < 1000


def test_what_is_not_known_is_left_out() -> None:
    one = Meter(accelerator(), Speed(None, 1.0, 1.0), GUARD, CLOCK, by_base=False, repeats=True)
    one.add(Windows.empty(0), of_loss(1.0))
    stepped(one)
    line = line_of(one, TrainState(1, step=1), 1)
    assert not {"mfu", "loss_a"} & line.keys()


def test_a_step_that_is_left_out_is_no_part_of_the_means() -> None:
    one = Meter(accelerator(), Speed(None, 1.0, 1.0), GUARD, CLOCK, by_base=True, repeats=True)
    one.add(Windows.empty(0), of_loss(2.0))
    stepped(one, 3.0)
    one.add(Windows.empty(0), of_loss(math.nan))
    stepped(one, math.nan, left_out=True)
    state = TrainState(9, step=2)
    line, skips = one.line(state, 1)
    assert line is not None
    assert (line["loss"], line["gradient_norm"], line["skipped"]) == (2.0, 3.0, 1)
    assert [skip["gradient_norm"] for skip in skips] == [None]
    assert (state.skipped, state.skipped_in_row) == (1, 1)


def test_there_is_no_line_when_every_step_was_left_out() -> None:
    one = Meter(accelerator(), Speed(None, 1.0, 1.0), GUARD, CLOCK, by_base=True, repeats=True)
    one.add(Windows.empty(0), of_loss(math.nan))
    stepped(one, math.nan, left_out=True)
    line, skips = one.line(TrainState(9, step=1), 1)
    assert line is None
    assert len(skips) == 1


def test_every_key_is_in_the_reference() -> None:
    one = Meter(accelerator(), Speed(1.0, 1.0, 1.0), GUARD, CLOCK, by_base=True, repeats=True)
    sums = torch.ones(6 + 2 * len(GROUPS))
    one.add(Windows.empty(0), sums)
    stepped(one)
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {word.strip(" `") for row in rows for word in row.split(",")}
    assert set(line_of(one, TrainState(1, step=1), 1)) == documented
