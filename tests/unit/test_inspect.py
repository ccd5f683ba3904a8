"""What `data inspect` says is in a data set: lengths, letters, lower case, against the records themselves."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnascale.cli import main
from dnascale.data.inspect import content_of, lengths_of
from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.shards import Dataset
from dnascale.errors import DataError

LETTERS = "ACGTacgtN"


def make(tmp_path: Path, lengths: list[int]) -> tuple[Dataset, list[str]]:
    rng = random.Random(0)
    texts = ["".join(rng.choices(LETTERS, k=length)) for length in lengths]
    (tmp_path / "a.fa").write_text("".join(f">r{i}\n{text}\n" for i, text in enumerate(texts)))
    # Shards of two blocks of 512: records of more go over several.
    options = PrepareOptions(valid=0.0, soft_mask=True)
    return prepare([str(tmp_path / "a.fa")], tmp_path / "out", options, block_tokens=512, shard_blocks=2), texts


def test_lengths_and_letters_are_those_of_the_records_also_of_those_in_several_shards(tmp_path: Path) -> None:
    lengths = [1, 2, 3, 4, 7, 8, 9, 1023, 1024, 1025, 5000, 3, 3]
    dataset, texts = make(tmp_path, lengths)
    assert len(dataset.splits["train"].shards) > 7
    content = content_of(dataset)["train"]
    letters = Counter("".join(texts).upper())
    total = letters.total()
    assert (content.records, content.bases, content.tokens) == (len(texts), total, total + len(texts))
    assert content.composition == {letter: count / total for letter, count in letters.most_common()}
    assert content.gc == (letters["G"] + letters["C"]) / (total - letters["N"])
    assert content.n == letters["N"] / total
    assert content.lower_case == sum(letter.islower() for text in texts for letter in text) / total
    found = content.lengths
    assert found is not None
    assert (found.shortest, found.median, found.n50, found.longest) == (1, 7, 5000, 5000)
    assert {(b.low, b.high): b.records for b in found.bins if b.records} == {
        (1, 2): 1, (2, 4): 4, (4, 8): 2, (8, 16): 2, (512, 1024): 1, (1024, 2048): 2, (4096, 8192): 1
    }  # fmt: skip
    assert sum(b.tokens for b in found.bins) == total


@given(
    st.lists(
        st.integers(1, 70) | st.sampled_from([2**k - 1 for k in range(1, 50)] + [2**k for k in range(50)]), min_size=1
    )
)
def test_the_summary_of_lengths_is_what_sorting_them_gives(lengths: list[int]) -> None:
    found = lengths_of(*np.unique(np.array(lengths, dtype=np.int64), return_counts=True))
    ordered = sorted(lengths)
    assert (found.shortest, found.longest) == (ordered[0], ordered[-1])
    assert found.median == ordered[(len(ordered) - 1) // 2]
    seen = 0
    for length in reversed(ordered):
        seen += length
        if 2 * seen >= sum(ordered):
            assert found.n50 == length
            break
    for b in found.bins:
        inside = [length for length in lengths if b.low <= length < b.high]
        assert (b.records, b.tokens) == (len(inside), sum(inside))
    assert sum(b.records for b in found.bins) == len(lengths)


def test_without_tables_of_records_all_but_the_lengths_is_known_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    dataset, _ = make(tmp_path, [100, 2000])
    table = dataset.folder / "train" / "shard-000001.records.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match="no table of records"):
        content_of(dataset)
    table.unlink()
    content = content_of(dataset)["train"]
    assert content.lengths is None
    assert content.bases == 2100


def test_the_command_shows_a_histogram_and_gives_all_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, texts = make(tmp_path, [3] * 6 + [900, 5000])
    with pytest.raises(SystemExit) as left:
        main(["data", "inspect", str(dataset.folder)])
    assert not left.value.code
    shown = capsys.readouterr().out
    assert "4,096" in shown
    assert "N50" in shown
    with pytest.raises(SystemExit):
        main(["data", "inspect", str(dataset.folder), "--json"])
    body = json.loads(capsys.readouterr().out)
    assert body["content"]["train"]["lengths"]["longest"] == 5000
    assert body["content"]["train"]["records"] == len(texts)
    assert body["fingerprint"] == dataset.fingerprint
