"""The panel: its bar counts tokens, so that the time that is left is right when batches change."""

import io

from rich.console import Console

from dnascale.train.screen import Screen
from dnascale.train.state import TrainState

LINE = {
    "nats_per_base": 1.3, "tokens_per_second": 50.0, "share_of_matmul": 0.41, "data_wait": 0.02, "memory_gb": 3.21, "learning_rate": 2e-3,
    "epoch": 0.5,
}  # fmt: skip


def test_the_bar_is_as_far_as_the_tokens_and_says_the_step() -> None:
    screen = Screen(main=True)
    screen.console = Console(file=io.StringIO(), force_terminal=True, width=200)
    screen._tokens = 10_000  # as the header counts them
    state = TrainState(total_steps=20, step=10, tokens=1_000)  # half of the steps, and a tenth of the work
    with screen.progress(state):
        assert screen._bar.tasks[0].percentage == 10.0
        state.step, state.tokens = 12, 3_000
        screen.step(state, LINE, None)
        assert screen._bar.tasks[0].percentage == 30.0
        assert screen._bar.tasks[0].description == "training 12/20"


def test_the_panel_says_the_loss_beside_chance_the_pace_and_what_limits_it() -> None:
    out = io.StringIO()
    screen = Screen(main=True)
    screen.console = Console(file=out, force_terminal=True, width=120)
    screen._tokens = 10_000
    state = TrainState(total_steps=20, step=10, tokens=1_000)
    with screen.progress(state):
        for loss in (1.38, 1.34, 1.30):
            screen.step(state, LINE | {"nats_per_base": loss}, 1.31)
        screen._live.refresh()
    said = out.getvalue()
    assert "masked loss 1.3000 nats per base, +0.0863 below chance (ln 4)  valid 1.3100   █▅▁" in said
    assert (
        "50 tokens/s, 41% of a matrix product   data wait 2.0%   3.2 GB   learning rate 2.00e-03   epoch 0.50" in said
    )


def test_without_a_terminal_there_are_lines_alone() -> None:
    out = io.StringIO()
    screen = Screen(main=True)
    screen.console = Console(file=out, width=120)
    state = TrainState(total_steps=20, step=20, tokens=1_000)
    with screen.progress(state):
        screen.step(state, LINE, None)
    assert out.getvalue() == "step     20/20  masked loss 1.3000 (ln 4 = 1.386)  50 tokens/s\n"
