"""A data set, shown."""

from typing import TYPE_CHECKING, Any

from dnascale.cli.shared import new_console, new_table

if TYPE_CHECKING:
    from rich.console import Console

    from dnascale.data.inspect import Content
    from dnascale.data.shards import Dataset

_WARN_OF_LEAKAGE = 0.01  # of a held-out split, in leaked records


def show_dataset(dataset: "Dataset", as_json: bool, done: str = "written") -> None:
    """`done`: what happened to it now."""
    from dnascale.data.tally import sentences

    if as_json:
        print(dataset.to_json(), end="")
        return
    console = new_console()
    table = new_table("split", "records", "bases", "longest", "shards", "GC", "N", "lower case")
    for name, split in dataset.splits.items():
        of = split.composition.get
        known = sum(of(base, 0) for base in "ACGT")
        table.add_row(
            name, f"{split.records:,}", f"{split.bases:,}", f"{split.longest_record:,}", str(len(split.shards)),
            f"{(of('G', 0) + of('C', 0)) / max(known, 1):.1%}", f"{of('N', 0) / max(split.bases, 1):.2%}",
            f"{split.soft_masked / max(split.bases, 1):.1%}",
        )  # fmt: skip
    console.print(table)
    for line in sentences(dataset.cleaning):
        console.print(line, style="yellow" if line.startswith("warning") else None)
    if uracils := sum(split.composition.get("U", 0) for split in dataset.splits.values()):
        console.print(
            f"warning  {uracils:,} bases are U: this is RNA, and U is never predicted. Write T for U to train on all four bases.",
            style="yellow",
        )
    rules = ", ".join(f"{count:,} by {rule}" for rule, count in dataset.groups.items())
    if rules:
        console.print(f"groups   {rules}")
    _show_splitting(dataset.splitting, console)
    for source in dataset.sources:
        if "skipped" in source:
            console.print(f"left out {source['skipped']}", style="yellow")
        for warning in source["warnings"]:
            console.print(f"warning  {warning}", style="yellow")
    console.print(f"{done:8} {dataset.location} (fingerprint {dataset.fingerprint[:12]})")


def show_content(split: str, content: "Content") -> None:
    """The letters of a split, and a histogram of its lengths, if they are known."""
    console = new_console()
    letters = ", ".join(f"{letter} {share:.2%}" for letter, share in content.composition.items())
    console.print(f"\n{split:8} {letters}")
    lengths = content.lengths
    if lengths is None:
        return
    console.print(
        f"lengths  from {lengths.shortest:,} to {lengths.longest:,} tokens, median {lengths.median:,}, N50 {lengths.n50:,}"
    )
    table = new_table("from", "below", "records", "tokens", "")
    total = sum(bin.tokens for bin in lengths.bins)
    for bin in lengths.bins:
        bar = "█" * round(40 * bin.tokens / total)
        table.add_row(f"{bin.low:,}", f"{bin.high:,}", f"{bin.records:,}", f"{bin.tokens:,}", bar)
    table.columns[0].justify = "right"
    table.columns[-1].justify = "left"
    console.print(table)


def _show_splitting(splitting: dict[str, Any], console: "Console") -> None:
    """What --cluster joined, and the audit: what the splits share."""
    if splitting.get("units"):
        largest = ", ".join(f"{unit['name']} ({unit['groups']})" for unit in splitting["largest_units"][:3])
        console.print(f"clusters {splitting['units']:,} units of several groups; largest: {largest}")
    audit = splitting.get("leakage")
    if not audit or not audit["overlaps"]:
        return
    table = new_table("leakage", "31-mers looked at", "also in", "shared", "share", "leaked records")
    leaked = {row["split"]: row for row in audit["leaked"]}
    for row in audit["overlaps"]:
        of = leaked[row["split"]]
        table.add_row(
            row["split"], f"{row['kmers']:,}", row["other"], f"{row['shared']:,}",
            f"{row['shared'] / max(row['kmers'], 1):.2%}",
            f"{of['leaked']:,} of {of['records']:,}" if row["other"] == "train" else "",
        )  # fmt: skip
    console.print(table)
    for row in audit["leaked"]:
        if (share := row["leaked_kmers"] / max(row["kmers"], 1)) > _WARN_OF_LEAKAGE:
            worst = ", ".join(group["name"] for group in audit["worst"][:3] if group["split"] == row["split"])
            console.print(
                f"warning  {share:.1%} of {row['split']} is in records that stand in train too (worst: {worst}), which makes a "
                "loss on it look better than it is. Among groups as small as genes, --cluster 0.2 puts near-duplicates into one split.",
                style="yellow",
            )
