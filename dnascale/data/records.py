"""The tables beside the shards, records.parquet, and which of their rows begin a record."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.shards import Dataset
from dnascale.errors import DataError


def record_table(dataset: Dataset, split: str, number: int) -> Path:
    """Where the table of a shard is, if it is there."""
    return (dataset.folder / dataset.splits[split].shards.name(number)).with_suffix(".records.parquet")


def record_tables(dataset: Dataset, split: str, columns: Sequence[str]) -> Iterator[tuple[Any, np.ndarray]]:
    """Of each shard its pyarrow Table, with at least `columns`, and bool [rows]: whether a row begins a record.

    A row that does not goes on with the last record of the shard before. Raises DataError: a table is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = dataset.splits[split].shards
    open_ended = False  # whether the shard before ended in the middle of a record
    for number, tokens in enumerate(shards.tokens.tolist()):
        path = record_table(dataset, split, number)
        try:
            table = pq.read_table(path, columns=[*dict.fromkeys([*columns, "shard_start", "length"])])
        except FileNotFoundError:
            raise DataError(f"{path} is missing, and with it what the records are: copy it again.") from None
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise DataError(f"{path} is no table of records ({error}); fetch or prepare the data set again.") from None
        starts, lengths = table["shard_start"].to_numpy(), table["length"].to_numpy()
        begins = np.ones(len(starts), dtype=np.bool_)
        begins[:1] = not (open_ended and len(starts) and starts[0] == 0)
        open_ended = bool(len(starts)) and bool(starts[-1] + lengths[-1] == tokens)
        yield table, begins
