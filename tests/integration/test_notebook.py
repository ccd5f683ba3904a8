"""launch/colab.ipynb, cell by cell, as IPython would run it: with the small model, and without what only Colab has."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from jobs import environment

NOTEBOOK = Path(__file__).parents[2] / "launch" / "colab.ipynb"


def as_python(source: str) -> str:
    """`!command {name}` to a call, `%magic` to nothing: what IPython makes of them."""
    source = re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE)
    return re.sub(r"^(\s*)!(.*)$", lambda m: f"{m[1]}shell(f{m[2]!r})", source, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_notebook_trains_plots_evaluates_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said: list[str] = []

    def shell(command: str) -> None:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment(PATH=path))
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said.append(done.stdout)

    plot = MagicMock()
    monkeypatch.setitem(sys.modules, "matplotlib", MagicMock(pyplot=plot))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", plot)
    scope: dict[str, Any] = {"shell": shell}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        exec(compile(as_python("".join(cell["source"])), f"cell {number}", "exec"), scope)
        if "PRESET" in scope and "run" not in scope:
            scope |= {"PRESET": "nano", "MINUTES": 0.1, "FOLDER": str(tmp_path / "my drive")}
    training, held_out = (call.args for call in plot.plot.call_args_list)
    assert len(training[0]) == len(training[1]) > 1
    assert len(held_out[0]) == len(held_out[1]) > 0
    assert max(held_out[1]) < 3
    assert (tmp_path / "my drive" / "model" / "model.safetensors").is_file()
    assert any("this model" in output for output in said)
