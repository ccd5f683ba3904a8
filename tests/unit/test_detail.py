"""A held-out loss taken apart, against loops over the bases."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dnascale.data.read import WindowReader
from dnascale.data.records import record_table
from dnascale.data.shards import Dataset, Split
from dnascale.data.writer import ShardWriter
from dnascale.evaluate.baselines import ContextModel
from dnascale.evaluate.detail import BaseLosses, Detail, take_apart
from dnascale.evaluate.loss import HeldOutLoss, held_out_loss
from dnascale.vocab import CHARACTER

BLOCK, CONTEXT, SEP, SOFT = 512, 48, CHARACTER.sep, 0x80
RNG = np.random.default_rng(0)
#: Records of five groups, with an N here and there, and soft-masked stretches.
RECORDS = [
    np.where(RNG.random(size) < 0.02, 4, RNG.choice(4, size, p=[0.4, 0.3, 0.2, 0.1])) | np.where(np.arange(size) % 50 < 15, SOFT, 0)
    for size in (301, 64, 200, 97, 180, 140, 110, 90, 75, 130)
]  # fmt: skip
GROUPS = ["a", "b", "a", "c", "b", "c", "d", "e", "d", "e"]
WEIGHTS = torch.randn(23, 23, generator=torch.Generator().manual_seed(1))


def logits(ids: torch.Tensor) -> torch.Tensor:
    """Decided by the two neighbours, so that every position has its own."""
    return WEIGHTS[ids.roll(1, 1)] + WEIGHTS[ids.roll(-1, 1)].flip(-1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("detail")
    stream = np.concatenate([np.append(record, SEP) for record in RECORDS]).astype(np.uint8)
    writer = ShardWriter(folder, "valid", block_tokens=BLOCK, shard_blocks=1)
    rest = stream
    while len(rest):
        piece, rest = rest[: writer.room], rest[writer.room :]
        writer.write(piece)
    split = Split(1, 1, 1, 1, 0, {}, writer.index())
    found = Dataset(folder, "", "", CHARACTER, True, [], {}, {}, {}, {"valid": split}, block_tokens=BLOCK)
    begins = np.cumsum([0, *(len(record) + 1 for record in RECORDS)])
    for number, tokens in enumerate(split.shards.tokens.tolist()):
        first, last = number * BLOCK, number * BLOCK + tokens
        rows = [
            (group, max(int(begin), first) - first, min(int(end) - 1, last) - max(int(begin), first))
            for group, begin, end in zip(GROUPS, begins, begins[1:], strict=False)
            if begin < last and end - 1 > first
        ]
        columns = {name: [row[n] for row in rows] for n, name in enumerate(("group", "shard_start", "length"))}
        pq.write_table(pa.table(columns), record_table(found, "valid", number))
    return found


@pytest.fixture(scope="module")
def scored(dataset: Dataset) -> tuple[WindowReader, BaseLosses, HeldOutLoss]:
    reader = WindowReader(dataset, "valid", CONTEXT)
    losses = BaseLosses(reader)
    whole = held_out_loss(logits, reader, CHARACTER, torch.device("cpu"), 4, note=losses.add)
    return reader, losses, whole


@pytest.fixture(scope="module")
def rivals() -> dict[str, ContextModel]:
    letters = [(record & 0x7F).astype(np.uint8) for record in RECORDS]
    return {"worse": ContextModel(0).fit([letters[0][:40]]), "better": ContextModel(1, 1).fit(letters)}


@pytest.fixture(scope="module")
def detail(scored: tuple[WindowReader, BaseLosses, HeldOutLoss], rivals: dict[str, ContextModel]) -> Detail:
    return take_apart(scored[0], scored[1], rivals)


def by(key: Callable[[int, int, int], object], losses: BaseLosses) -> dict[object, tuple[float, float, int]]:
    """Mean nats, accuracy and number of bases by `key(record, place, token)`, in a loop."""
    found: dict[object, list[tuple[float, bool]]] = defaultdict(list)
    at = 0
    for number, record in enumerate(RECORDS):
        for place, token in enumerate(record.tolist()):
            if token & 0x7F < 4:
                found[key(number, place, token)].append((float(losses.nats[at]), bool(losses.right[at])))
            at += 1
        at += 1
    return {
        name: (float(np.mean([n for n, _ in some])), float(np.mean([r for _, r in some])), len(some))
        for name, some in found.items()
    }


def test_of_several_sources_each_has_its_own_loss(dataset: Dataset, rivals: dict[str, ContextModel]) -> None:
    reader = WindowReader([dataset, dataset], "valid", CONTEXT)
    losses = BaseLosses(reader)
    whole = held_out_loss(logits, reader, CHARACTER, torch.device("cpu"), 4, note=losses.add)
    losses.nats[len(losses.nats) // 2 :] += 1  # the second is worse
    found = take_apart(reader, losses, rivals, ["good", "bad"])
    good, bad = found.parts["source"]
    assert [good.name, bad.name] == ["good", "bad"]
    assert good.bases + bad.bases == whole.bases
    for part, half in ((good, losses.nats[: len(losses.nats) // 2]), (bad, losses.nats[len(losses.nats) // 2 :])):
        assert part.nats_per_base == pytest.approx(float(np.nanmean(half.astype(np.float64))))
        assert part.bases == int((~np.isnan(half)).sum())
    assert "source" not in take_apart(reader, losses, rivals).parts


def test_every_base_has_its_loss_and_their_mean_is_the_whole(
    scored: tuple[WindowReader, BaseLosses, HeldOutLoss], detail: Detail
) -> None:
    _, losses, whole = scored
    stream = np.concatenate([np.append(record, SEP) for record in RECORDS]) & 0x7F
    assert np.array_equal(~np.isnan(losses.nats), stream < 4)
    assert np.nanmean(losses.nats.astype(np.float64)) == pytest.approx(whole.nats_per_base, abs=1e-6)
    assert detail.loss.value == pytest.approx(whole.nats_per_base, abs=1e-6)
    assert losses.right.sum() / (stream < 4).sum() == pytest.approx(whole.accuracy)


@pytest.mark.parametrize(
    ("title", "key"),
    [
        ("base", lambda _record, _place, token: "ATCG"[token & 0x7F]),
        ("position in the record, modulo 3", lambda _record, place, _token: ("first", "second", "third")[place % 3]),
        ("repeats (soft-masked)", lambda _record, _place, token: "inside" if token & SOFT else "outside"),
    ],
)  # fmt: skip
def test_parts_are_those_of_a_loop(
    scored: tuple[WindowReader, BaseLosses, HeldOutLoss],
    detail: Detail,
    title: str,
    key: Callable[[int, int, int], object],
) -> None:
    expected = by(key, scored[1])
    found = {part.name: (part.nats_per_base, part.accuracy, part.bases) for part in detail.parts[title]}
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[str(name)] == pytest.approx(values, abs=1e-6), name


def test_stretches_are_put_into_their_class_of_gc(
    scored: tuple[WindowReader, BaseLosses, HeldOutLoss], detail: Detail
) -> None:
    stream = np.concatenate([np.append(record, SEP) for record in RECORDS]) & 0x7F
    expected: dict[str, int] = defaultdict(int)
    for begin in range(0, len(stream), 512):
        bases = [token for token in stream[begin : begin + 512].tolist() if token < 4]
        gc = sum(token in (2, 3) for token in bases) / len(bases)
        bounds = [0, 35, 45, 55, 65, 100]
        place = next(n for n in range(5) if 100 * gc < bounds[n + 1])
        expected[f"{bounds[place]} to {bounds[place + 1]} %"] += len(bases)
    assert {part.name: part.bases for part in detail.parts["GC of 512 bases"]} == expected


def test_the_best_counts_are_named_and_the_distance_is_that_of_the_means(
    detail: Detail, rivals: dict[str, ContextModel]
) -> None:
    letters = [(record & 0x7F).astype(np.uint8) for record in RECORDS]
    assert detail.ahead_of == "better"
    assert detail.ahead.value == pytest.approx(
        rivals["better"].nats_per_base(letters)[-1] - detail.loss.value, abs=1e-6
    )


def test_intervals_are_over_groups_and_without_tables_over_records(
    dataset: Dataset,
    scored: tuple[WindowReader, BaseLosses, HeldOutLoss],
    rivals: dict[str, ContextModel],
    detail: Detail,
) -> None:
    assert (detail.unit, detail.units) == ("group", 5)
    assert detail.loss.low < detail.loss.value < detail.loss.high
    of_groups = by(lambda record, _place, _token: GROUPS[record], scored[1])
    assert min(v[0] for v in of_groups.values()) <= detail.loss.low + 1e-6
    assert detail.loss.high <= max(v[0] for v in of_groups.values()) + 1e-6
    table: Path = record_table(dataset, "valid", 0)
    moved = table.rename(table.with_suffix(".away"))
    try:
        alone = take_apart(scored[0], scored[1], rivals)
    finally:
        moved.rename(table)
    assert (alone.unit, alone.units) == ("record", len(RECORDS))
    assert alone.loss.value == detail.loss.value


def test_counts_score_records_apart_as_they_do_one_by_one(rivals: dict[str, ContextModel]) -> None:
    model = ContextModel(3, 3, phase=True).fit([(record & 0x7F).astype(np.uint8) for record in RECORDS])
    letters = [(record & 0x7F).astype(np.uint8) for record in RECORDS]
    one_by_one = [
        np.where(one < 4, -model.log_probability(one)[np.arange(len(one)), np.minimum(one, 3)], 0.0) for one in letters
    ]
    assert np.allclose(model.losses(letters), np.concatenate(one_by_one))


def test_few_groups_have_no_interval(
    scored: tuple[WindowReader, BaseLosses, HeldOutLoss],
    rivals: dict[str, ContextModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A chromosome that is held out is one group, and tells nothing of others."""
    monkeypatch.setattr("dnascale.evaluate.detail._groups", lambda _reader, records: (np.arange(records) % 4, "group"))
    found = take_apart(scored[0], scored[1], rivals).to_dict()
    assert found["units"] == 4
    assert found["loss"]["value"] > 0
    assert (found["loss"]["low"], found["ahead"]["high"]) == (None, None)
