"""`dnascale tokenizer`: tokens learned from data, and what a tokenizer does with sequences."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnascale.cli.arguments import written_here
from dnascale.cli.shared import DataFolder, Json, new_console, new_table

if TYPE_CHECKING:
    from dnascale.vocab import Vocabulary

app = typer.Typer(help="Learn tokens from data, and look into tokenizers.", no_args_is_help=True)


@app.command("train")
def train(
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", callback=written_here, metavar="TOK", help="Tokenizer folder to make.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens, letters and special tokens included: up to 32768.")] = 4096,
    max_bases: Annotated[
        int, typer.Option(help="Learn from this many bases of the training split; time and memory grow with them.")
    ] = 20_000_000,
    as_json: Json = False,
) -> None:
    """Byte-pair encoding learned from the training split of a data set, for `dnascale prepare --tokenizer TOK`."""
    from dnascale.data.shards import load_dataset
    from dnascale.data.tokenizer import train_tokenizer

    bar = new_console(stderr=True).is_terminal and not as_json
    vocabulary = train_tokenizer(load_dataset(data), vocab_size, out, max_bases, show_progress=bar)
    _show(vocabulary, as_json)
    if not as_json:
        print(f"written  {out}")


@app.command("inspect")
def inspect(
    tokenizer: Annotated[
        str, typer.Argument(metavar="TOK", help="Tokenizer folder, or character, kmer:K, kmer:K:overlap.")
    ],
    as_json: Json = False,
) -> None:
    """What the tokens of a tokenizer are."""
    from dnascale.vocab import load_vocabulary

    _show(load_vocabulary(tokenizer), as_json)


def _describe(vocabulary: "Vocabulary") -> dict[str, Any]:
    lengths: dict[int, list[str]] = {}
    for token in vocabulary.tokens[vocabulary.first_long :]:
        lengths.setdefault(len(token), []).append(token)
    return {
        "name": vocabulary.name, "tokens": len(vocabulary), "dtype": vocabulary.dtype.name, "sha256": vocabulary.digest,
        "letters": list(vocabulary.tokens[: vocabulary.bases]),
        "special_tokens": list(vocabulary.tokens[vocabulary.bases : vocabulary.first_long]),
        "longer_tokens": {length: len(tokens) for length, tokens in sorted(lengths.items())},
        "examples": {length: tokens[:5] for length, tokens in sorted(lengths.items())},
        "in_words": vocabulary.in_words,
    }  # fmt: skip


def _show(vocabulary: "Vocabulary", as_json: bool) -> None:
    about = _describe(vocabulary)
    if as_json:
        print(json.dumps(about, indent=1))
        return
    console = new_console()
    size = "one byte" if vocabulary.dtype.itemsize == 1 else "two bytes"
    console.print(f"{about['name']}: {about['tokens']:,} tokens of {size}. {about['in_words']}.")
    console.print(f"letters  {' '.join(about['letters'])}")
    console.print(f"special  {' '.join(about['special_tokens'])}")
    if about["longer_tokens"]:
        table = new_table("letters of a token", "tokens", "e.g.")
        for length, count in about["longer_tokens"].items():
            table.add_row(str(length), f"{count:,}", " ".join(about["examples"][length]))
        console.print(table)
    console.print(f"sha256   {about['sha256']}")
