"""What becomes of an error that nobody foresaw: its exit code, and one sentence."""

from pathlib import Path

import pytest

from dnascale.cli import app

#: As gloo says it when the process at the other end is killed.
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.3]:58580. This is typically"


def ends(error: Exception, monkeypatch: pytest.MonkeyPatch, world: str) -> int | str | None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(app.os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit) as caught:
        app.main(["train"])
    return caught.value.code


@pytest.mark.parametrize(("world", "code"), [("2", 7), ("1", 1)])
def test_a_collective_that_lost_a_process_is_a_lost_process_and_no_bug(
    world: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(RuntimeError(GLOO), monkeypatch, world) == code
    assert ("another process of this run is gone" in capsys.readouterr().err) == (code == 7)


def test_any_other_error_among_several_processes_stays_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), monkeypatch, "2") == 1
    assert "This is a bug in dnascale" in capsys.readouterr().err


def test_an_error_of_another_process_is_raised_as_the_nearest_kind_that_users_know() -> None:
    from dnascale import errors
    from dnascale.train.checkpoint import Damaged

    damaged = Damaged(Path("step-00000001"), "damaged")
    for error, known in (
        (damaged, "CheckpointError"),
        (errors.SpaceError("full"), "SpaceError"),
        (ValueError("?"), "DnascaleError"),
    ):
        assert errors.kind(error) == known
        assert issubclass(getattr(errors, known), errors.DnascaleError)
