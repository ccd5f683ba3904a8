"""What `prepare` does to the records: the options of the command, of a recipe, and of dataset.json."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dnascale.data.sources import ReadOptions
from dnascale.data.split import SPLITS, Grouping, Holdout, Holdouts, SplitOptions
from dnascale.data.take import CleanOptions, TakeOptions
from dnascale.errors import UsageError

__all__ = ["SPLITS", "PrepareOptions"]

#: Of these nothing is seen in what a read task writes, but how many 31-mers are sampled, which a plan settles.
_NOT_OF_READING = ("valid", "test", "soft_mask", "skip_bad_files", "allow_absent", "cluster", "max_leakage")


@dataclass(frozen=True)
class PrepareOptions(CleanOptions, TakeOptions):
    """What `prepare` does to the records: what is taken and how it is cleaned, and the rest. Recorded in dataset.json.

    The meaning of the rest is told by the part that it belongs to: `ReadOptions`, `Grouping`, `Holdouts`, `SplitOptions`.
    Raises UsageError for values that cannot be, or have nothing to act on.

    Attributes:
        skip_bad_files: leave unusable inputs out, and list them.
        valid, test: a share of the groups, or names of groups.
        tokenizer: `character`, `kmer:K`, `kmer:K:overlap`, or the folder of one.
        soft_mask: keep lower case in the shards.
        seed: of the order of records.
    """

    format: str | None = None
    column: str | None = None
    name_column: str | None = None
    skip_bad_records: bool = False
    skip_bad_files: bool = False
    expect: str | None = None
    drop_duplicates: bool = False
    group: str | None = None
    group_otherwise: str | None = None
    valid: float | str = 0.1
    test: float | str = 0.0
    cluster: float | None = None
    max_leakage: float | None = 0.1
    tokenizer: str = "character"
    soft_mask: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        # Whatever cannot be is refused before anything is read.
        TakeOptions.__post_init__(self)
        CleanOptions.__post_init__(self)
        _ = self.grouping
        holdouts = self.splitting.holdouts
        if self.cluster is not None and len(holdouts.splits) < 2:
            raise UsageError(
                "--cluster keeps near-duplicates in one split, and there is only one: add --valid or --test."
            )
        for name in ("valid", "test"):  # one way to write a share, however it was given
            holdout = getattr(holdouts, name)
            if not holdout.names:
                object.__setattr__(self, name, holdout.share)
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"--seed {self.seed} must be at least 0 and below 2^64.")

    @cached_property
    def grouping(self) -> Grouping:
        return Grouping.parse(self.group, self.group_otherwise)

    @cached_property
    def splitting(self) -> SplitOptions:
        holdouts = Holdouts(Holdout.parse("--valid", self.valid), Holdout.parse("--test", self.test))
        return SplitOptions(holdouts, self.drop_duplicates, self.cluster, self.max_leakage)

    def reading(self, temporary: Path) -> ReadOptions:
        return ReadOptions(
            self.format, self.column, self.name_column, self.skip_bad_records, str(temporary), self.expect
        )

    @property
    def files(self) -> list[str]:
        """Files beside the inputs that the options name: what is expected, regions or annotation, a table of groups."""
        tables = [self.grouping.argument] if self.grouping.by == "table" else []
        return [*(file for file in (self.expect, self.file) if file), *tables]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def of_reading(self) -> dict[str, Any]:
        """Those that decide what a read task writes: with others the same, its result is used again."""
        of_reading = {name: value for name, value in self.to_dict().items() if name not in _NOT_OF_READING}
        return of_reading | {"sampled": self.splitting.needs_sample}
