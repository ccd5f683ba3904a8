"""Every `dnascale` command that a page shows is one that there is: its options, and the keys of the configuration that it sets."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

from dnascale.cli.app import app
from dnascale.config import keys_named

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "command-line.md"),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "launch").glob("*.s*")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(dnascale [^`\n]+)`")
COMMENT = re.compile(r"^#\s+(dnascale .+?)(?:\s{2,}.*)?$", re.MULTILINE)
ENDS = {"|", ";", "&&", "||", "&", ">", "do", "then", "dnascale"}
SETTING = re.compile(r"(?:--override=)?([a-z]+(?:\.[a-z_]+)+)=")


def commands_of(page: Path) -> list[list[str]]:
    """The words of each command on a page, without `dnascale` itself."""
    text = page.read_text()
    if page.suffix == ".md":
        lines = [
            line
            for language, block in FENCE.findall(text)
            if language in ("", "bash", "sh")
            for line in block.replace("\\\n", " ").splitlines()
        ]
        lines += INLINE.findall(text)
    else:
        lines = COMMENT.findall(text)
    return [words for line in lines for words in commands_in(line) if words]


def commands_in(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quote that goes on in the next line: of Python or YAML
        return
    words = [part for word in words for part in (word.split() if word.startswith("dnascale ") else [word])]
    before = ""
    for place, word in enumerate(words):
        if word == "dnascale" and not before.startswith("-"):  # docker build -t dnascale
            yield list(takewhile(lambda one: one not in ENDS, words[place + 1 :]))
        before = word


def parse(words: list[str]) -> None:
    """Raises click's errors where there is no such command or option."""
    command: Any = typer.main.get_command(app)
    context = command.make_context(
        "dnascale", ["--help-not-asked"], resilient_parsing=True, ignore_unknown_options=True
    )
    rest = [word for word in words if word != "--debug"]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name, rest = rest[0], rest[1:]
        if (command := command.get_command(context, name)) is None:
            raise LookupError(f"No such command: {name}")
        context = type(context)(command, info_name=name, parent=context)
    command.make_parser(context).parse_args(list(rest))


CASES = [(page, words) for page in PAGES for words in commands_of(page)]


def test_commands_are_found_on_most_pages() -> None:
    assert len(CASES) > 200
    assert len({page for page, _ in CASES}) > 40
    assert ["eval", "runs/mine"] in commands_of(ROOT / "README.md")


@pytest.mark.parametrize("words", [["evaluate", "x"], ["eval", "x", "--outt", "y"], ["data", "prepare"]])
def test_a_command_that_there_is_not_is_noticed(words: list[str]) -> None:
    with pytest.raises(Exception, match="No such"):
        parse(words)


@pytest.mark.parametrize("page", sorted({page for page, _ in CASES}), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for words in commands_of(page):
        try:
            parse(words)
        except Exception as error:
            raise AssertionError(f"{page}: dnascale {' '.join(words)}: {error}") from error
        for word in words:
            if (match := SETTING.match(word)) and not match[1].startswith("data.sources."):
                assert match[1] in keys_named(match[1].rpartition(".")[2]), f"{page}: {word}"
