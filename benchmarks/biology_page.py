"""The Markdown page of benchmarks/biology.py: figures and tables, and what each was measured on; no judgement that they do not hold."""

from __future__ import annotations

import math
from typing import Any

from dnascale.evaluate.statistics import shown

Row = list[str]


def page(result: dict[str, Any], name: str) -> str:
    """`result`: what biology.py writes as JSON. `name`: of the page, and so of its figures."""
    model, options = result["model"], result["options"]
    parts = [
        "# What a model of coding sequences has learned",
        f"{model['about']} {model['parameters'] / 1e6:.1f} million parameters. Measured on {result['date']} with dnascale {result['version']}, "
        f"torch {result['torch']}, {options['precision']}, {result['machine']}, by `benchmarks/biology.py` (the "
        f"numbers: `{name}.json`). Data set `{result['data']['name']}`, fingerprint `{result['data']['fingerprint'][:12]}`, {result['data']['records']:,} "
        "training records; every rival is counted on the same. In brackets: 95 % intervals by bootstrap.",
        *_held_out(result["held_out"], name),
        *_gene("DRD2", result["DRD2"], name, options),
        *_gene("BRCA2", result["BRCA2"], name, options),
        *_windows(result["windows"], name),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _held_out(found: dict[str, Any], name: str) -> list[str]:
    rows = []
    for predictor, (loss, more) in sorted(found["loss"].items(), key=lambda pair: pair[1][0]["value"]):
        difference = "" if predictor == "model" else _number(more, 4, sign=True)
        rows.append([_bold(predictor), _number(loss, 4), f"{loss['value'] / math.log(2):.4f}", difference])
    codon = [
        [_bold(predictor), *(_number(one) for one in places)] for predictor, places in found["codon_position"].items()
    ]
    stops = [[_bold(predictor), *(_number(one, 4) for one in frames)] for predictor, frames in found["stop"].items()]
    power = ", ".join(f"{predictor} {value:.0f}" for predictor, value in found["power_at_three"].items())
    return [
        "## Held-out genes",
        f"{found['records']:,} genes of the validation split that begin with ATG in frame, {found['bases']:,} bases. Each base is hidden once, with a seventh of its "
        "window. Intervals over genes; the last column is the difference on the same bases.",
        _table(["predictor", "nats per base", "bits", "more than the model"], rows),
        f"![Held-out loss of each predictor]({name}-loss.png)",
        "## Codons",
        "Loss by codon position, nats per base:",
        _table(["predictor", "1", "2", "3"], codon),
        "Mean probability of the base that would turn three neighbouring bases into TAA, TAG or TGA, wherever one change would do so: in the frame of the codons, where "
        "that is a stop, and in the two other frames, where it is not:",
        _table(["predictor", "frame of the codons", "+1", "+2"], stops),
        f"Power of the loss at a period of three bases, as a multiple of the median over all periods: {power}.",
        f"![Loss by codon position, its periodogram, and stops by frame]({name}-codons.png)",
    ]


def _gene(gene: str, found: dict[str, Any], name: str, options: dict[str, Any]) -> list[str]:
    exact = (
        "exact"
        if options["together"] == 1
        else f"up to {options['together']} positions hidden at once, an approximation"
    )
    what = {
        "DRD2": f"Every substitution of its {found['bases']:,} coding bases",
        "BRCA2": f"Saturation genome editing: the coding variants of {found['bases']:,} bases of spliced exons",
    }[gene]
    medians = []
    for kind, count in found["count"].items():
        medians.append([kind, f"{count:,}", *(_number(one["median"][kind]) for one in found["scorers"].values())])
    pairs = next(iter(found["scorers"].values()))["auroc"]
    areas = [[pair, *(_number(one["auroc"][pair]) for one in found["scorers"].values())] for pair in pairs]
    scorers = [_bold(scorer) for scorer in found["scorers"]]
    parts = [
        f"## {gene}",
        f"{what}: {found['substitutions']:,}. {found['kmers_in_training']:,} of its {found['kmers']:,} canonical 31-mers are in the training split. Masked marginal, "
        f"{options['strands']} strand{'s' if options['strands'] == 'both' else ' alone'}, {exact}. Intervals over codons.",
        "Median log-likelihood ratio, nats:",
        _table(["consequence", "variants", *scorers], medians),
        "AUROC that the milder change scores higher (0.5 is chance):",
        _table(["", *scorers], areas),
        f"![Log-likelihood ratios of {gene} by consequence]({name}-{gene.lower()}.png)",
    ]
    if "measured" in found:
        questions = next(iter(found["measured"].values()))
        rows = [[question, *(_number(one[question]) for one in found["measured"].values())] for question in questions]
        parts += [
            "Against what was measured in cells (log2 of day 14 over day 5, low where function is lost), and ClinVar's classes:",
            _table(["", *scorers], rows),
            f"![The model's score against the measured function]({name}-{gene.lower()}-function.png)",
        ]
    else:
        parts.append(f"![Log-likelihood ratios along {gene}]({name}-{gene.lower()}-along.png)")
    return parts


def _windows(found: dict[str, Any], name: str) -> list[str]:
    return [
        "## Coding or not, chromosome 20",
        f"{found['coding']:,} windows of {found['bases']} bases cut from translated exons, and {found['others']:,} of the same GC content (to 2 %) that touch no annotated "
        "exon, of GRCh37, all read on the forward strand of the chromosome, whichever strand the gene is on. Embeddings are the mean of the last layer over a window and both "
        "strands; hexamers are counted on both. Both go into the same ridge-penalized logistic regression, in five folds that hold out whole megabases, with the penalty chosen "
        "inside the training folds. The hexamer score is not fitted here: the mean log ratio of in-frame hexamers in the training genes over non-coding sequence of the "
        f"chromosome, best of six frames. {found['coding_in_training']:,} of the coding windows share a 31-mer with the training split of the model and of the hexamer "
        f"score, so the second column is of the {found['coding'] - found['coding_in_training']:,} that do not. Intervals over {found['stretches']} megabases.",
        _table(
            ["scorer", "AUROC, all windows", "coding windows not in training"],
            [
                [_bold(scorer), _number(one), _number(found["auroc_unseen"][scorer])]
                for scorer, one in found["auroc"].items()
            ],
        ),
        f"![Receiver operating characteristics]({name}-windows.png)",
    ]


def _table(head: Row, rows: list[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bold(name: str) -> str:
    return f"**{name}**" if name in ("model", "embeddings") else name


def _number(value: dict[str, float | None], digits: int = 3, sign: bool = False) -> str:
    return shown(value, f"{'+' if sign else ''}.{digits}f")
