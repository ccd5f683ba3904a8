"""What a check found."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """ok; note: training works, but slower, or with less, than it could; bad: training fails, or would be wrong."""

    ok = "ok"
    note = "note"
    bad = "bad"


@dataclass(frozen=True)
class Finding:
    """One line of the table. `numbers` are what was measured, for machines to read."""

    what: str
    verdict: Verdict
    found: str
    mend: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ok(what: str, found: str, **numbers: Any) -> Finding:
    return Finding(what, Verdict.ok, found, "", numbers)


def note(what: str, found: str, mend: str, **numbers: Any) -> Finding:
    return Finding(what, Verdict.note, found, mend, numbers)


def bad(what: str, found: str, mend: str, **numbers: Any) -> Finding:
    return Finding(what, Verdict.bad, found, mend, numbers)
