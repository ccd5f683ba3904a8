"""The program: its commands, and what it says and returns when one fails."""

import contextlib
import io
import os
import signal
import sys
import warnings
from functools import partial
from typing import Annotated, Any

import typer

from dnascale import __version__
from dnascale.cli import bench, checkpoints, data, embed, launch, plan, prepare, probe, report, score, tokenizer, train
from dnascale.cli.shared import ReaderGone
from dnascale.errors import DnascaleError, DnascaleWarning, PeerError, UsageError, first_line, printable

app = typer.Typer(
    name="dnascale",
    help="Train DNA language models, from one laptop to a cluster, with the same commands.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(prepare.prepare)
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")
app.command()(train.train)
app.command()(launch.launch)
app.command()(launch.doctor)
app.add_typer(bench.app, name="bench")
app.command()(plan.plan)
app.command("eval")(train.evaluate)
app.command()(score.score)
app.command()(embed.embed)
app.command()(probe.probe)
app.command()(report.report)
app.command()(train.export)
app.add_typer(checkpoints.app, name="ckpt")

_INTERRUPTED = 128 + signal.SIGINT
#: `| head` has read enough: the code of programs that the signal ends. Windows has no such signal.
_READER_GONE = 128 + 13


def main(args: list[str] | None = None) -> None:
    """Entry point. Errors are one sentence and a documented exit code; `--debug` anywhere adds the traceback."""
    args = list(sys.argv[1:] if args is None else args)
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        # Where another program wants the cores too, threads that wait for each other in long loops take all their time for it.
        os.environ["GOMP_SPINCOUNT"] = "10000"
    debug = "--debug" in args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal's encoding, what is said is said
    args = [word for word in args if word != "--debug"]
    out = sys.stdout
    warnings.showwarning = partial(_warn, warnings.showwarning)
    try:
        code = app(args=args, prog_name="dnascale", standalone_mode=False) or 0
    except DnascaleError as error:
        code = _report(str(error), error.exit_code, debug, error.shared, error.label)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except ReaderGone:
        code = _READER_GONE
    except SystemExit as ended:
        # Where `print` found nobody to read, something silent has been put in place of stdout.
        code = ended.code if sys.stdout is out else _READER_GONE
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own usage errors
            code = UsageError.exit_code
            if sentence := error.format_message():
                _report(f"{sentence}{_as_setting(error)}{_commands(error)}", code, debug)
        elif _is_lost_peer(error):
            sentence = "another process of this run is gone, or its machine or network: its own message says why"
            code = _report(
                f"{sentence} ({first_line(error)}). Started again, the run goes on from its last checkpoint.",
                PeerError.exit_code,
                debug,
            )
        else:
            hint = "" if debug else " This is a bug in dnascale or its surroundings; --debug shows where."
            code = _report(f"{type(error).__name__}: {error}{hint}", 1, debug)
    if code == _INTERRUPTED:  # typer returns it
        _report(
            "interrupted. Give the same command again: `prepare`, `train`, `score` and `embed` go on from what is done, others start anew.",
            code,
            debug=False,
        )
    if _flush() and code == 0:
        code = _READER_GONE
    if "torch.distributed" in sys.modules and os.environ.get("WORLD_SIZE", "1") != "1":
        # Threads of gloo and DeepSpeed that still run abort the interpreter's own shutdown now and then.
        os._exit(code)
    sys.exit(code)


def _warn(others: Any, message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Our own warnings as a sentence; `others` shows those of libraries."""
    if issubclass(category, DnascaleWarning):
        _report(str(message), 0, debug=False, shared=True, label="warning")
    else:
        others(message, category, *where)


def _as_setting(error: Any) -> str:
    """What to write in place of an option that there is not, but a setting of that name."""
    from dnascale.config import keys_named

    found = keys_named(str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_"))
    return f". Settings of a run are written {found[0]}=VALUE, without dashes." if found else ""


def _commands(error: Any) -> str:
    """What there is in place of a command that there is not."""
    context = getattr(error, "ctx", None)
    if context is None or not str(error.message).startswith("No such command"):
        return ""
    return f" {context.command_path} has: {', '.join(context.command.list_commands(context))}."


def _is_lost_peer(error: Exception) -> bool:
    """Whether a collective has failed because of another process. Gloo raises plain RuntimeErrors, known by their text alone."""
    if not isinstance(error, RuntimeError) or os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    return (
        type(error).__name__.startswith("Dist")
        or "gloo/transport" in str(error)
        or "Connection closed by peer" in str(error)
    )


def _flush() -> bool:
    """Prints what is left. Nobody may be there to read it, which is what it gives, and nothing to write it to."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError as error:
                gone = gone or isinstance(error, BrokenPipeError)
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return gone


def _report(sentence: str, code: int, debug: bool, shared: bool = False, label: str = "error") -> int:
    """Prints one sentence: on rank 0 what all ranks met, on any rank what it met alone."""
    if debug:
        import traceback

        traceback.print_exc()
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not shared:
        where = f"rank {rank}: " if rank != "0" else ""
        # Names of files come from others: they must not steer the terminal.
        with contextlib.suppress(BrokenPipeError):
            print(
                f"dnascale: {label}: {where}" + "\n".join(map(printable, sentence.split("\n"))),
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return code


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="With any command: where in the code an error arose.")] = False,
) -> None:
    assert not debug, "main takes it out"
    if version:
        print(f"dnascale {__version__}")
        raise typer.Exit
