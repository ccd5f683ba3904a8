"""Where the numbers of a run go: metrics.jsonl is the source of truth; wandb and the terminal mirror it."""

import contextlib
import json
import math
import os
import secrets
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnascale.config import Config
from dnascale.errors import UsageError
from dnascale.files import explained, write_whole

if TYPE_CHECKING:
    pass

LN4 = math.log(4)


class MetricsFile:
    """metrics.jsonl, one JSON object a line. On resume, lines after the checkpoint's step are dropped.

    Raises SpaceError or UsageError when it cannot be opened. A line that cannot be written later is kept and written
    with the next: a full disk does not stop training by itself.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        kept: list[str] = []
        try:
            if path.is_file():
                for line in path.read_text().splitlines():
                    with contextlib.suppress(ValueError, KeyError):  # the last line of a killed run may be torn
                        if json.loads(line)["step"] <= resumed_step:
                            kept.append(line)
            write_whole(path, "".join(f"{line}\n" for line in kept).encode())
            self._file = path.open("a")
        except OSError as error:
            raise explained(error, path) from error
        self._path = path
        self._unwritten: list[str] = []

    def write(self, **values: Any) -> None:
        self._unwritten.append(json.dumps(values) + "\n")
        try:
            # One system call a line, so that what was written can be told from what was not.
            while self._unwritten:
                os.write(self._file.fileno(), self._unwritten[0].encode())
                self._unwritten.pop(0)
        except OSError as error:
            warnings.warn(f"{explained(error, self._path)} Training goes on; the lines are kept.", stacklevel=1)

    def close(self) -> None:
        """Raises SpaceError or UsageError when lines are still unwritten."""
        self._file.close()
        if self._unwritten:
            raise UsageError(f"{len(self._unwritten)} lines of {self._path} could not be written: is the disk full?")


class Wandb:
    """Weights & Biases, when asked for. After a successful start its failures are warnings and never stop a run."""

    def __init__(self, config: Config, run: Path, extra: dict[str, Any]) -> None:
        self._run: Any = None
        if config.log.wandb == "off":
            return
        try:
            import wandb
        except ImportError:
            raise UsageError(
                f"log.wandb={config.log.wandb} needs wandb: pip install 'dnascale[wandb]', or log.wandb=off."
            ) from None
        id_file = run / "wandb-id"
        run_id = id_file.read_text().strip() if id_file.is_file() else secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=config.log.wandb_project,
                name=run.name,
                id=run_id,
                resume="allow",
                dir=str(run),
                mode=config.log.wandb,
                config=config.model_dump(mode="json") | extra,
                settings=wandb.Settings(x_disable_meta=True, silent=True),
            )
        except Exception as error:
            raise UsageError(
                f"wandb does not start ({' '.join(str(error).split())}): log in with `wandb login`, or use "
                "log.wandb=offline or off."
            ) from None
        id_file.write_text(run_id)
        # A resumed run repeats steps, which wandb's own step counter would drop.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, **values: Any) -> None:
        if self._run is None:
            return
        try:
            self._run.log(values)
        except Exception as error:
            warnings.warn(f"wandb: {error}; training goes on", stacklevel=1)

    def finish(self) -> None:
        if self._run is not None:
            with contextlib.suppress(Exception):
                self._run.finish()


class Recorder:
    """Writes lines to metrics.jsonl and wandb; on ranks other than 0, to nothing."""

    def __init__(self, file: MetricsFile | None = None, wandb: Wandb | None = None) -> None:
        self._file, self._wandb = file, wandb

    def write(self, kind: str, **values: Any) -> None:
        if self._file is not None:
            self._file.write(kind=kind, **values)
        if self._wandb is not None:
            self._wandb.log(**values)

    def close(self) -> None:
        """Raises UsageError when lines of metrics.jsonl could not be written."""
        if self._wandb is not None:
            self._wandb.finish()
        if self._file is not None:
            self._file.close()
