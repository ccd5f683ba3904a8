"""What `prepare` does to the records: the options of the command, of a recipe, and of dataset.json."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from dnascale.data.sources import ReadOptions
from dnascale.errors import UsageError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class PrepareOptions:
    """What `prepare` does to the records. Recorded in dataset.json."""

    valid: float = 0.1
    test: float = 0.0
    group: str | None = None
    min_length: int = 1
    soft_mask: bool = False
    seed: int = 0
    skip_bad_files: bool = False

    def __post_init__(self) -> None:
        if self.valid < 0 or self.test < 0 or self.valid + self.test >= 1:
            raise UsageError(f"--valid {self.valid} and --test {self.test} must be shares that leave some for train.")
        if self.min_length < 1:
            raise UsageError(f"--min-length {self.min_length} must be at least 1.")
        if self.group is not None:
            try:
                if re.compile(self.group).groups < 1:
                    raise UsageError(f"--group '{self.group}' needs a group in parentheses, e.g. 'gene=(\\w+)'.")
            except re.error as error:
                raise UsageError(f"--group '{self.group}' is not a regular expression: {error}.") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def of_sources(self) -> ReadOptions:
        """Those of the readers."""
        return ReadOptions()

    def of_reading(self) -> dict[str, Any]:
        """Those that decide what a read task writes: with others the same, its result is used again."""
        settling = ("valid", "test", "soft_mask", "skip_bad_files")
        return {name: value for name, value in self.to_dict().items() if name not in settling}
