"""The documentation as a site: a strict build, and what it makes from the program itself."""

import html
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text())


def test_every_page_is_built_without_a_dead_link(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix("") / "index.html").is_file(), page
    assert "FASTA in" in text(site / "index.html")


def test_the_pages_made_from_the_program_are_those_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT)
    from docs.site import generated

    pinned = re.search(r"^typer==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    for name, content in generated().items():
        if "command-line" not in name or version("typer") == pinned[1]:  # which writes that page
            assert (ROOT / "docs" / name).read_text() == content, f"docs/{name} is out of date: make docs"


def test_the_list_of_all_pages_has_all_pages() -> None:
    contents = ROOT / "docs" / "contents.md"
    linked = set(re.findall(r"\]\(([a-z-]+/[a-z0-9-]+\.md)\)", contents.read_text()))
    assert linked == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {
        "contents.md"
    }


def test_the_command_line_page_has_every_command(site: Path) -> None:
    import typer

    from dnascale.cli.app import app

    shown = text(site / "reference" / "command-line" / "index.html")
    command = typer.main.get_command(app)
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        for words in [f"dnascale {name} {one}" for one in getattr(sub, "commands", {})] or [f"dnascale {name}"]:
            assert words in shown


def test_the_configuration_page_has_every_key_with_its_default_and_meaning(site: Path) -> None:
    from dnascale.config import Config

    rows = re.findall(r"<tr>(.*?)</tr>", (site / "reference" / "configuration" / "index.html").read_text(), re.DOTALL)
    cells = {
        row[0]: row[1:]
        for row in (
            [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)]
            for row in rows
        )
        if row
    }
    keys = [f"{name}.{key}" for name, field in Config.model_fields.items() for key in field.annotation.model_fields]  # type: ignore[union-attr]
    assert set(keys) <= set(cells)
    assert [key for key, (_, _, meaning) in cells.items() if not meaning] == []
    assert cells["data.workers"][:2] == ["whole number ≥ 0", "0"]
    assert cells["optimizer.betas"][1] == "[0.9, 0.98]"
    assert cells["train.compile"][:2] == ["layers, whole or false", "null"]


def test_the_file_that_the_configuration_page_shows_is_taken(site: Path, tmp_path: Path) -> None:
    from dnascale.config import load_config

    page = (site / "reference" / "configuration" / "index.html").read_text()
    shown = next(block for block in re.findall(r"<code>(.*?)</code>", page, re.DOTALL) if "train.yaml" in block)
    (tmp_path / "train.yaml").write_text(html.unescape(re.sub(r"<[^>]+>", "", shown)))
    config = load_config(str(tmp_path / "train.yaml"), ["train.epochs=3"])
    assert config.model == load_config("small", ["data.path=data", "train.steps=1"]).model
    assert (config.train.epochs, config.train.micro_batch_tokens, config.optimizer.name) == (3, "auto", "muon")
    assert config.checkpoint.keep_every == 10_000
