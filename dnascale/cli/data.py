"""`dnascale data`: what is in data sets, and whether it is whole."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dnascale.cli.arguments import written_here
from dnascale.cli.dataset import show_content, show_dataset
from dnascale.cli.shared import DataFolder, Json, bytes_bar

app = typer.Typer(help="Look into data sets and check them.", no_args_is_help=True)


@app.command("inspect")
def inspect(data: DataFolder, as_json: Json = False) -> None:
    """What is in a data set, or in each of a mixture: records, lengths, bases, lower case, what the splits share."""
    from dnascale.data.inspect import content_of
    from dnascale.data.shards import load_dataset

    mixture = _mixture(data)
    as_dicts = {}
    for source, location in (mixture or {"": data}).items():
        dataset = load_dataset(location)
        content = content_of(dataset)
        if as_json:
            shown = {split: asdict(of_split) for split, of_split in content.items()}
            as_dicts[source] = json.loads(dataset.to_json()) | {"content": shown}
            continue
        if mixture:
            print(f"{source}:")
        show_dataset(dataset, as_json, done="read")
        for name, split in content.items():
            show_content(name, split)
    if as_json:
        print(json.dumps({"sources": as_dicts} if mixture else as_dicts[""], indent=1))


@app.command("index")
def index(
    tars: Annotated[
        list[str], typer.Argument(metavar="TARS...", help="WebDataset tars (not compressed), or globs, to train on.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=written_here,
            help="Data set folder to make, or the folder that the tars lie in: both then move together.",
        ),
    ],
    valid: Annotated[list[str] | None, typer.Option(metavar="TARS", help="Tars held out for validation.")] = None,
    test: Annotated[list[str] | None, typer.Option(metavar="TARS", help="Tars held out for testing.")] = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            help="Member of a sample that is its sequence: txt, seq, sequence, dna (letters); bin, tokens, npy (token ids). Default: the one there is."
        ),
    ] = None,
    alphabet: Annotated[
        str | None,
        typer.Option(help="Letters of the token ids 0, 1, 2, ..., e.g. ACGTN. Default: ids of dnascale's vocabulary."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train from WebDataset tars that others made, where they are: writes an index, copies nothing."""
    from dnascale.data.foreign import IndexOptions, find_tars, index

    options = IndexOptions(suffix, alphabet)
    found = {split: find_tars(given or []) for split, given in (("train", tars), ("valid", valid), ("test", test))}
    size = sum(path.stat().st_size for paths in found.values() for path in paths)
    with bytes_bar("indexing", size) as advance:
        dataset = index(found, out, options, advance)
    show_dataset(dataset, as_json)
    if dataset.translate is None and not as_json:
        letters = " ".join(dataset.vocabulary.tokens[: dataset.vocabulary.bases])
        print(f"ids      read as 0, 1, 2, ... = {letters}; give --alphabet if they are others")


@app.command("merge")
def merge(
    sources: Annotated[list[str], typer.Argument(metavar="DATA...", help="Data sets: folders that prepare made.")],
    out: Annotated[Path, typer.Option("--out", callback=written_here, help="Data set folder to make.")],
    max_leakage: Annotated[
        float,
        typer.Option(
            help="Refuse a held-out split of which more than this part stands in the training data of another; 1 does not look."
        ),
    ] = 0.1,
    as_json: Json = False,
) -> None:
    """Several data sets into one, of the same vocabulary, with every group in one split."""
    from dnascale.data.merge import merge
    from dnascale.data.shards import load_dataset

    datasets = [load_dataset(source) for source in sources]
    size = sum(split.tokens * dataset.dtype.itemsize for dataset in datasets for split in dataset.splits.values())
    with bytes_bar("merging", size) as advance:
        dataset = merge(sources, out, advance, max_leakage)
    show_dataset(dataset, as_json)


@app.command("verify")
def verify(data: DataFolder) -> None:
    """Compare every file with its digest, and every count; names file, block and byte of each fault."""
    from dnascale.errors import DataError

    damaged = [sentence for location in (_mixture(data) or {"": data}).values() if (sentence := _faults(location))]
    if damaged:
        raise DataError(" ".join(damaged))


def _mixture(data: str) -> dict[str, str] | None:
    """Where the data sets of a mixture are, by name; None when `data` is no mixture."""
    from dnascale.data.mixture import load_mixture
    from dnascale.data.remote import is_remote

    mixture = None if is_remote(data) else load_mixture(Path(data))
    return mixture and {name: source["path"] for name, source in mixture["sources"].items()}


def _faults(data: str) -> str:
    """Verifies one data set, prints what was found, and gives a sentence when it is damaged, else nothing."""
    from dnascale.data.verify import opened_to_verify, verify

    with opened_to_verify(data) as dataset:
        shards = [shard for split in dataset.splits.values() for shard in split.shards]
        size = sum(shard.bytes for shard in shards)
        with bytes_bar("verifying", size) as advance:
            faults = verify(dataset, advance)
    for fault in faults:
        print(fault)
    if faults:
        return (
            f"{dataset.location} is damaged: {len(faults)} fault{'s' * (len(faults) != 1)}. "
            "Copy these files again, or prepare the data again."
        )
    print(
        f"{dataset.location}: {len(shards)} shards, {size:,} bytes, all digests, and numbers of tokens and records, right"
    )
    return ""
