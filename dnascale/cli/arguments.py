"""Arguments and options that several commands have, with their values."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dnascale.errors import UsageError


class Device(StrEnum):
    """Where a model computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Strands(StrEnum):
    """Which strands are asked."""

    auto = "auto"
    both = "both"
    forward = "forward"


BOTH = {Strands.auto: None, Strands.both: True, Strands.forward: False}


class Precision(StrEnum):
    """Of matrix products."""

    fp32 = "fp32"
    bf16 = "bf16"


def written_here(path: Path | None) -> Path | None:
    """What an option names that is to be written: `~` as a shell would have it. Raises UsageError for a URL."""
    if path is None:
        return None
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise UsageError(f"{path} is a URL, and this is written on this machine: name a path here, and copy it there.")
    return path.expanduser()


Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Run folder, one of its checkpoints, or a Hugging Face folder.")
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Of matrix products: bf16 is faster on GPUs and rounds scores.")
]
ContextOption = Annotated[int | None, typer.Option(help="Bases a window, if less than the model takes.")]
StrandsOption = Annotated[
    Strands, typer.Option(help="The mean of both strands, the strand as given, or (auto) as the model was trained.")
]
BatchOption = Annotated[int | None, typer.Option(min=1, help="Tokens of one forward, if memory asks for fewer.")]
