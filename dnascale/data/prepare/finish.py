"""The end: index, dataset.json, and the one rename that makes the data set appear."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dnascale import __version__
from dnascale.data.prepare.plan import Work
from dnascale.data.prepare.settle import Settled
from dnascale.data.prepare.write import marker
from dnascale.data.shards import BLOCK_ROW, SHARD_NAME, Dataset, Index, Shard, Split, load_dataset
from dnascale.data.tally import Tally
from dnascale.files import sync
from dnascale.vocab import Vocabulary


def finish(work: Work, settled: Settled, out: Path) -> Dataset:
    """Makes the work folder's shards the data set `out`, and removes the work folder."""
    plan = work.plan
    reports = [work.report(number) for number in range(len(plan.inputs))]
    splits = {name: _split(work, name, sums, plan.vocabulary) for name, sums in settled.splits.items()}
    cleaning = _cleaning(Tally.from_dict(settled.tally), splits)
    rules: Counter[str] = Counter()
    for report in reports:
        rules.update(report["rules"])
    dataset = Dataset(
        folder=out,
        name=out.name,
        created_by=f"dnascale {__version__}",
        vocabulary=plan.vocabulary,
        soft_mask_bit=plan.options.soft_mask,
        sources=[report["source"] for report in reports],
        options=plan.options.to_dict(),
        cleaning=cleaning,
        groups=dict(sorted(rules.items())),
        splits=splits,
        splitting=settled.splitting,
        block_tokens=plan.block_tokens,
    )
    _tidy(work.shards, splits)
    dataset.save(work.shards)
    for folder, _, _ in os.walk(work.shards):
        sync(Path(folder))
    work.shards.replace(out)
    sync(out.parent)
    shutil.rmtree(work.folder, ignore_errors=True)
    return load_dataset(out)


def _tidy(folder: Path, splits: dict[str, Split]) -> None:
    """Removes what processes that were killed have left between the shards."""
    tars = [Path(split.shards.name(number)) for split in splits.values() for number in range(len(split.shards))]
    known = {folder / file for tar in tars for file in (tar, tar.with_suffix(".records.parquet"))}
    for path in folder.rglob("*"):
        if path.is_file() and path not in known:
            path.unlink()


def _split(work: Work, name: str, sums: dict[str, int], vocabulary: Vocabulary) -> Split:
    shards, counts, masked = [], np.zeros(len(vocabulary), dtype=np.int64), 0
    for number in range(-(-sums["tokens"] // work.plan.shard_tokens)):
        body: dict[str, Any] = json.loads(marker(work, name, number).read_bytes())
        blocks = np.array([tuple(block) for block in body["blocks"]], dtype=BLOCK_ROW)
        file = f"{name}/{SHARD_NAME % number}"
        shards.append(Shard(file, body["bytes"], body["sha256"], int(blocks["tokens"].sum()), body["records"], blocks))
        for token, found in body["counts"].items():
            counts[int(token)] += found
        masked += body["soft_masked"]
    assert counts[vocabulary.sep] == sums["records"], f"{counts[vocabulary.sep]:,} separators of {sums['records']:,}"
    counts[vocabulary.sep] = 0
    letters = vocabulary.letter_counts(counts)
    return Split(
        records=sums["records"],
        bases=sums["bases"],
        tokens=sums["tokens"],
        longest_record=sums["longest"],
        soft_masked=masked,
        composition={vocabulary.tokens[i]: int(letters[i]) for i in np.flatnonzero(letters)},
        shards=Index.of(shards, f"{name}/{SHARD_NAME}"),
    )


def _cleaning(tally: Tally, splits: dict[str, Split]) -> dict[str, Any]:
    """What became of everything that was read. Raises AssertionError when something is not accounted for."""
    tally.balance()
    out = {key: sum(getattr(split, key) for split in splits.values()) for key in ("records", "bases")}
    assert (out["records"], out["bases"]) == (tally.records_out, tally.bases_out), f"{out} written of {tally}"
    assert all(sum(split.composition.values()) == split.bases for split in splits.values()), "bases do not add up"
    return tally.to_report()
