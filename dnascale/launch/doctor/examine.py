"""The checks in their order, each on its own: one that raises is a finding, and the others go on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dnascale.errors import DnascaleError
from dnascale.launch.doctor import compute, surroundings
from dnascale.launch.doctor.communication import communication
from dnascale.launch.doctor.finding import Finding, bad


@dataclass(frozen=True)
class Options:
    """What to look at. `data` None: no data set. `device`: auto, cpu, cuda or mps."""

    device: str = "auto"
    data: str | None = None
    folder: Path = Path()
    processes: int | None = None


Check = tuple[str, Callable[[Options], list[Finding]]]


def checks() -> list[Check]:
    """(What is checked, the check)."""
    return [
        ("system", lambda _: surroundings.system()),
        ("packages", lambda _: surroundings.packages()),
        ("devices", lambda options: compute.devices(options.device)),
        ("precision", lambda options: compute.precision(options.device)),
        ("attention", lambda options: compute.attention(options.device)),
        ("training step", lambda options: compute.step(options.device)),
        ("torch.compile", lambda options: compute.compilation(options.device)),
        ("DeepSpeed", lambda _: surroundings.deepspeed()),
        ("processes", lambda options: communication(options.device, options.processes)),
        ("disk", lambda options: surroundings.disk(options.folder)),
        ("data", lambda options: surroundings.data(options.data)),
        ("clock", lambda _: surroundings.clock()),
    ]


def run_check(check: Check, options: Options) -> list[Finding]:
    """Findings of one check. An exception is one more: of ours with its sentence, of others with its kind."""
    name, look = check
    try:
        return look(options)
    except DnascaleError as error:
        return [bad(name, str(error), "")]
    except Exception as error:
        sentence = " ".join(str(error).split())[:300]
        return [bad(name, f"{type(error).__name__}: {sentence}", "this stops training too: see the message")]
