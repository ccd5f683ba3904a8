"""What `make docs` does beyond MkDocs: the navigation, pages made from the program itself, links to files outside docs/.

Run as a program it writes the pages that are made from the program and the rows: they are in the repository too, for its readers there.
"""

import json
import posixpath
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dnascale.config import Config, SourceConfig, StageConfig

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")
#: Folders of docs/, in the order of a reader; what is to be read first in each.
_PARTS = {
    "Tutorial": ("tutorial", ["tutorial/ten-minutes.md", "tutorial/bigger.md"]),
    "How to": ("how-to", ["how-to/prepare.md", "how-to/input-formats.md", "how-to/launch.md", "how-to/report.md"]),
    "Reference": ("reference", ["reference/command-line.md", "reference/configuration.md"]),
    "Explanation": ("explanation", ["explanation/how-it-works.md", "explanation/architecture.md"]),
    "Benchmarks": ("benchmarks", ["benchmarks/hardware.md"]),
}


def on_config(config: Any) -> Any:
    nav: list[Any] = [{"dnascale": "index.md"}, {"All pages": "contents.md"}]
    for title, (folder, first) in _PARTS.items():
        there = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / folder).glob("*.md"))
        pages = dict.fromkeys([*first, *there])
        nav.append({title: list(pages)})
    config.nav = nav
    return config


def on_files(files: Any, config: Any) -> Any:
    files.append(File.generated(config, "index.md", content=_index()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files of the repository that are not in docs/ go to the repository. Raises PluginError for what is not there."""

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), link[1]))
        if path.startswith("docs/"):
            return link[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {link[1]}, which is not there")
        return f"]({config.repo_url}/blob/main/{path}{link[2] or ''})"

    return _LINK.sub(moved, markdown)


def generated() -> dict[str, str]:
    """Pages by their path in docs/."""
    return {
        "reference/command-line.md": _command_line(),
        "reference/configuration.md": _configuration(),
        "benchmarks/hardware.md": _hardware(),
    }


def _index() -> str:
    """README.md, seen from docs/."""
    text = (ROOT / "README.md").read_text()
    return _LINK.sub(lambda link: f"]({posixpath.relpath(link[1], 'docs')}{link[2] or ''})", text)


def _command_line() -> str:
    import typer
    from typer.cli import get_docs_for_click

    from dnascale.cli.app import app

    command = typer.main.get_command(app)
    title = "Command line"
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="dnascale", title=title)


def _hardware() -> str:
    """Every row of `dnascale bench run` that lies in docs/benchmarks/."""
    from dnascale.bench.throughput import COLUMNS
    from dnascale.cli.bench import HEADS, cells

    lines = [
        "# Hardware, measured",
        "",
        "All rows of `dnascale bench run` in [docs/benchmarks/](https://github.com/dnascale/dnascale/tree/main/docs/benchmarks), one file a",
        "machine. Yours are welcome: [how](../how-to/measure.md). `nano` had AdamW in those of 26 and 27 November 2026; `small` had Muon.",
    ]
    for path in sorted((ROOT / "docs" / "benchmarks").glob("*.jsonl")):
        rows = [row for line in path.read_text().splitlines() if set(COLUMNS) <= set(row := json.loads(line))]
        if rows:
            versions = rows[0]["versions"]
            said = ", ".join(
                f"{name} {versions[name]}" for name in ("torch", "transformers", "dnascale") if name in versions
            )
            lines += ["", f"## {path.stem}", "", f"{rows[0]['date']}, {said}.", ""]
            lines += ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
            lines += ["| " + " | ".join(line) + " |" for line in cells(rows)]
    return "\n".join(lines) + "\n"


#: train.yaml, for `dnascale train train.yaml run.dir=runs/long`.
_EXAMPLE = (
    "# train.yaml: dnascale train train.yaml run.dir=runs/long",
    "preset: small",
    "data: {path: data}",
    "train: {epochs: 20, micro_batch_tokens: auto}",
    "optimizer: {name: muon, learning_rate: 2e-3}",
    "schedule: {shape: wsd-sqrt}",
    "checkpoint: {every: 1000, keep_every: 10000}",
)


def _configuration() -> str:
    lines = [
        "# Configuration",
        "",
        "A preset (`nano`, `book`, ...) or a YAML file, then `section.key=value` on the command line. `dnascale train CONFIG data.path=DATA --show`",
        "(with `nano` and `mini` a length too: `train.minutes=20`) prints a whole one, to begin a file with. An unknown key is an error that names the nearest right one. *required*: presets have a value for it, or it",
        "must be given.",
        "",
        "A file may begin with a preset and say what differs; the command line goes before both:",
        "",
        "```yaml",
        *_EXAMPLE,
        "```",
    ]
    for name, field in Config.model_fields.items():
        assert isinstance(field.annotation, type)
        lines += ["", f"## {name}", "", *_table(name, field.annotation)]
    lines += ["", "## data.sources", "", "Of each source, by its name.", "", *_table("data.sources.NAME", SourceConfig)]
    lines += ["", "## schedule.stages", "", *_table("schedule.stages[N]", StageConfig)]
    return "\n".join(lines) + "\n"


def _table(prefix: str, section: type[BaseModel]) -> Iterator[str]:
    yield from ("| key | value | default | meaning |", "|---|---|---|---|")
    for key, field in section.model_fields.items():
        default = "*required*" if field.is_required() else f"`{_shown(field.default)}`"
        yield f"| `{prefix}.{key}` | {_value(field)} | {default} | {_escaped(field.description or '')} |"


def _shown(value: Any) -> str:
    """As YAML writes it."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _value(field: FieldInfo) -> str:
    """What may be given: the type in words, and its bounds."""
    bounds = [
        f"{sign} {getattr(limit, word)}"
        for limit in field.metadata
        for word, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if hasattr(limit, word)
    ]
    return _escaped(" ".join([_type(field.annotation), ", ".join(bounds)]).strip())


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{_shown(part)}`" for part in parts)
    if origin is types.UnionType or str(origin) == "typing.Union":
        return " or ".join(_type(part) for part in parts if part is not type(None))
    if hasattr(annotation, "__metadata__"):  # Annotated: the bounds are written where they are a field's own
        return _type(parts[0]) + (" > 0" if any(getattr(m, "gt", None) == 0 for m in annotation.__metadata__) else "")
    if origin in (list, dict, tuple):
        return {list: "list", dict: "by name", tuple: "pair of numbers"}[origin]
    return {int: "whole number", float: "number", str: "text", bool: "true, false"}.get(annotation, "see below")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[")


if __name__ == "__main__":
    for name, content in generated().items():
        (ROOT / "docs" / name).write_text(content)
