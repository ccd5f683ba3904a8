"""Where the numbers of a run go: metrics.jsonl is the source of truth; wandb, TensorBoard and the terminal mirror it."""

import contextlib
import json
import math
import os
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnascale.config import Config
from dnascale.errors import UsageError
from dnascale.files import explained, write_whole

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
        self._unwritten = b""

    def write(self, **values: Any) -> None:
        self._unwritten += (json.dumps(values) + "\n").encode()
        try:
            self._flush()
        except OSError as error:
            warnings.warn(f"{explained(error, self._path)} Training goes on; the lines are kept.", stacklevel=1)

    def _flush(self) -> None:
        # By system calls, which tell how much of a line a full disk has taken: the rest follows upon it.
        while self._unwritten:
            self._unwritten = self._unwritten[os.write(self._file.fileno(), self._unwritten) :]

    def close(self) -> None:
        """Raises SpaceError or UsageError when lines are still unwritten, and cannot be written now."""
        try:
            self._flush()
        except OSError as error:
            lines = self._unwritten.count(b"\n")
            raise explained(error, self._path, f"Its last {lines} lines are lost") from error
        finally:
            self._file.close()


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


class TensorBoard:
    """Event files in RUN/tensorboard, when asked for. After a successful start its failures are warnings and never stop a run."""

    def __init__(self, config: Config, run: Path, resumed_step: int) -> None:
        self._writer: Any = None
        if not config.log.tensorboard:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "log.tensorboard=true needs tensorboard: pip install 'dnascale[tensorboard]', or leave it out."
            ) from None
        try:
            # What was written after the checkpoint's step is hidden: those steps are taken again.
            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_step + 1)
        except OSError as error:
            raise explained(error, run / "tensorboard") from error

    def log(self, **values: Any) -> None:
        if self._writer is None:
            return
        step = values.pop("step")
        try:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)
        except Exception as error:
            warnings.warn(f"tensorboard: {error}; training goes on", stacklevel=1)

    def finish(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()


class Recorder:
    """Writes lines to metrics.jsonl and to its mirrors; on ranks other than 0, to nothing."""

    def __init__(self, file: MetricsFile | None = None, mirrors: Sequence[Wandb | TensorBoard] = ()) -> None:
        self._file, self._mirrors = file, mirrors

    def write(self, kind: str, **values: Any) -> None:
        if self._file is not None:
            self._file.write(kind=kind, **values)
        if kind not in ("train", "valid"):  # not on the curves of the same names
            values = {key if key == "step" else f"{kind}/{key}": value for key, value in values.items()}
        for mirror in self._mirrors:
            mirror.log(**values)

    def close(self) -> None:
        """Raises UsageError when lines of metrics.jsonl could not be written."""
        for mirror in self._mirrors:
            mirror.finish()
        if self._file is not None:
            self._file.close()
