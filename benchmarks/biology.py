"""What a model of coding sequences has learned: a page with figures, from held-out genes, DRD2, BRCA2 and chromosome 20.

Usage: python benchmarks/biology.py MODEL --data DATA --inputs FOLDER --out docs/benchmarks/biology [--about "one sentence"]

MODEL is a run or an exported folder, DATA the data set it was trained on (its training split fits every rival and is searched
for the genes that are scored). FOLDER has the files of `_INPUTS`. Writes OUT.md, OUT.json and OUT-*.png. Stopped, the same command goes on
with the part that it was at.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import biology_figures as draw
import biology_heldout as genes
import biology_variants as variants
import biology_windows as places
import numpy as np
import torch

from dnascale import __version__
from dnascale.data.read import split_records
from dnascale.data.shards import Dataset, load_dataset
from dnascale.evaluate import figures
from dnascale.evaluate.language_model import load_model
from dnascale.evaluate.likelihood import Likelihood
from dnascale.evaluate.statistics import Estimate
from dnascale.evaluate.variants.alleles import codes_of
from dnascale.evaluate.variants.saturate import MODEL, Saturation, summarize
from dnascale.evaluate.variants.scores import ScoreOptions
from dnascale.files import write_whole

_INPUTS = {
    "brca2": "BRCA2_SGE_Couch_MayoNCI.tsv.gz",
    "brca2_context": "context_BRCA2_hg38.fa.gz",
    "chromosome": "human_GRCh37_chr20.fa.gz",
    "coding": "human_GRCh37_chr20.coding.bed12.gz",
    "others": "human_GRCh37_chr20.noncoding.bed12.gz",
}
#: Rivals in the figures of codons: the best that does not know the frame, and the best that does.
_SHOWN = ("context 4+4", "context 4+4 + codon phase")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="without a suffix")
    parser.add_argument("--about", default="", help="a sentence on the model, for the page")
    parser.add_argument("--bases", type=int, default=200_000, help="of held-out genes")
    parser.add_argument("--windows", type=int, default=1000, help="coding ones, and as many others")
    parser.add_argument("--together", type=int, default=1, help="positions of variants hidden at once; 1 is exact")
    parser.add_argument("--strands", choices=["forward", "both"], default="forward", help="of genes")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    paths = {role: given.inputs / name for role, name in _INPUTS.items()}
    if absent := [str(path) for path in paths.values() if not path.is_file()]:
        parser.error(f"not there: {', '.join(absent)}")
    data = load_dataset(given.data)
    train = split_records(data, "train")
    model = load_model(given.model, given.device, given.precision)
    likelihood = Likelihood(model, both_strands=given.strands == "both")
    options = ScoreOptions(both_strands=given.strands == "both", together=given.together)
    known = np.unique(np.concatenate([places.kmers(record) for record in train]))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "model": {
            "name": given.model.name,
            "digest": model.digest,
            "parameters": model.hf.num_parameters(),
            "about": given.about,
        },
        "data": {"name": data.name, "fingerprint": data.fingerprint, "records": len(train)},
        "options": {key: getattr(given, key) for key in ("bases", "windows", "together", "strands", "precision")},
        "device": str(model.device),
        "machine": _machine(model.device),
        "date": date.today().isoformat(),
        "version": __version__,
        "torch": torch.__version__,
    }
    drd2 = Saturation.of("builtin:drd2", coding=True)
    brca2, measured = variants.brca2(paths["brca2"], paths["brca2_context"])
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "held_out": lambda: _held_out(likelihood, data, train, given.bases, given.out),
        "DRD2": lambda: _gene(likelihood, drd2, data, options, known, given.out),
        "BRCA2": lambda: _gene(likelihood, brca2, data, options, known, given.out, measured),
        "windows": lambda: _windows(likelihood, paths, train, known, given.windows, given.out),
    }
    numbers = Path(f"{given.out}.json")
    before = json.loads(numbers.read_text()) if numbers.is_file() else {}
    if any(before.get(key) != value for key, value in result.items() if key not in ("date", "machine")):
        before = {}
    for name, measure in parts.items():
        result[name] = before[name] if name in before else measure()
        write_whole(numbers, (json.dumps(result, indent=1) + "\n").encode())
    from biology_page import page

    Path(f"{given.out}.md").write_text(page(result, given.out.name))


def _held_out(likelihood: Likelihood, data: Dataset, train: list[np.ndarray], bases: int, out: Path) -> dict[str, Any]:
    records = genes.in_frame(split_records(data, "valid"), bases)
    print(f"held-out genes: {len(records)}, {sum(map(len, records)):,} bases")
    predictors = genes.rivals(train)
    log_p = {name: [of(record) for record in records] for name, of in predictors.items()}
    log_p[MODEL] = [genes.predict(likelihood, record, seed) for seed, record in enumerate(records)]
    held_out = genes.HeldOut(records, log_p)
    losses = genes.losses(held_out, MODEL)
    shown = (MODEL, *_SHOWN)
    position = {name: genes.by_codon_position(held_out, name) for name in shown}
    period = {name: genes.periodogram(held_out, name) for name in shown}
    stops = {name: genes.stop_probability(held_out, name) for name in shown}
    draw.losses(losses, Path(f"{out}-loss.png"))
    draw.codons(position, period, stops, Path(f"{out}-codons.png"))
    three = genes.SEGMENT // 3 - 1  # the frequency whose period is three bases
    return {
        "records": len(records),
        "bases": sum(map(len, records)),
        "loss": {name: [one.to_dict() for one in pair] for name, pair in losses.items()},
        "codon_position": {name: [one.to_dict() for one in three_] for name, three_ in position.items()},
        "power_at_three": {name: float(power[three]) for name, (_, power) in period.items()},
        "stop": {name: [one.to_dict() for one in frames] for name, frames in stops.items()},
    }


def _gene(
    likelihood: Likelihood,
    saturation: Saturation,
    data: Dataset,
    options: ScoreOptions,
    known: np.ndarray,
    out: Path,
    measured: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    ((name, bases),) = saturation.sequences.items()
    print(f"{name}: {len(saturation.alleles):,} substitutions in {len(bases):,} bases")
    scorers = variants.scores(likelihood, saturation, data, options)
    in_training, all_ = places.shared(codes_of(bases), known)
    found = summarize(saturation, scorers) | {"bases": len(bases), "kmers": all_, "kmers_in_training": in_training}
    figures.by_consequence(saturation.consequences, scorers, Path(f"{out}-{name.lower()}.png"))
    if measured is not None:
        assert saturation.consequences is not None
        found["measured"] = variants.against_measured(saturation, scorers, measured)
        draw.against_function(
            scorers[MODEL], measured["function"], saturation.consequences, Path(f"{out}-{name.lower()}-function.png")
        )
    else:
        path = Path(f"{out}-{name.lower()}-along.png")
        figures.along_sequences(saturation.alleles, scorers[MODEL], saturation.consequences, path)
    return found


def _windows(
    likelihood: Likelihood, paths: dict[str, Path], train: list[np.ndarray], known: np.ndarray, count: int, out: Path
) -> dict[str, Any]:
    windows = places.choose(paths["chromosome"], paths["coding"], paths["others"], known, count)
    print(f"windows: {int(windows.coding.sum()):,} coding, as many others")
    embedded = places.embeddings(likelihood.model, windows.codes)
    scores = {
        "embeddings": places.cross_validated(embedded, windows),
        "hexamer counts": places.cross_validated(places.hexamer_counts(windows.codes), windows),
        "hexamer score": places.hexamer_score(windows, train),
        "GC content": (windows.codes >= 2).mean(axis=1),
    }
    areas: dict[str, Estimate] = {name: places.area(values, windows) for name, values in scores.items()}
    unseen = {name: places.area(values, windows, unseen=True) for name, values in scores.items()}
    draw.operating_curves(scores, windows.coding, areas, Path(f"{out}-windows.png"))
    return {
        "coding": int(windows.coding.sum()),
        "others": int((~windows.coding).sum()),
        "bases": places.WINDOW,
        "stretches": len(np.unique(windows.bins)),
        "coding_in_training": int(windows.seen.sum()),
        "auroc": {name: one.to_dict() for name, one in areas.items()},
        "auroc_unseen": {name: one.to_dict() for name, one in unseen.items()},
    }


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {platform.machine()}"


if __name__ == "__main__":
    main()
