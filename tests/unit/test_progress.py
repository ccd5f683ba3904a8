"""The progress bar counts tokens, so that the time that is left is right when batches change."""

import io

from rich.console import Console

from dnascale.train.screen import Screen
from dnascale.train.state import TrainState


def test_the_bar_is_as_far_as_the_tokens_and_says_the_step() -> None:
    screen = Screen(main=True)
    screen.console = Console(file=io.StringIO(), force_terminal=True, width=200)
    screen._tokens = 10_000  # as the header counts them
    state = TrainState(total_steps=20, step=10, tokens=1_000)  # half of the steps, and a tenth of the work
    line = {"nats_per_base": 1.3, "tokens_per_second": 50.0}
    with screen.progress(state):
        assert screen._bar.tasks[0].percentage == 10.0
        state.step, state.tokens = 12, 3_000
        screen.step(state, line, None)
        assert screen._bar.tasks[0].percentage == 30.0
        assert screen._bar.tasks[0].description == "training 12/20"
