"""Every `dnascale` command that a page shows is one that there is: its options, and the keys of the configuration that it sets."""

import re
import shlex
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
ENDS = {"|", ";", "&&", "||", "&", ">", "2>", "2>&1", "do", "then"}
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
    found = []
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote that goes on in the next line: of Python or YAML
            continue
        words = [
            part
            for word in words
            for part in (("dnascale", *word.split()[1:]) if word.startswith("dnascale ") else (word,))
        ]
        words = [part for word in words for part in ([word[:-1], ";"] if word.endswith(";") else [word])]
        # Not what an option is given: docker build -t dnascale .
        for place in (
            place
            for place, word in enumerate(words)
            if word == "dnascale" and not "".join(words[place - 1 : place]).startswith("-")
        ):
            rest = words[place + 1 :]
            end = next((number for number, word in enumerate(rest) if word in ENDS or word == "dnascale"), len(rest))
            found.append(rest[:end])
    return [words for words in found if words]


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
