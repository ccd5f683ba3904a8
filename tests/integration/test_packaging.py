"""What is shipped: the wheel, what it imports, and files about the project that must agree with it."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from dnascale import __version__

ROOT = Path(__file__).parents[2]
#: What comes with extras: nothing of a minimal installation may need it. (pandas, scipy: transformers and pyarrow use them if they are there.)
EXTRAS = (
    "deepspeed", "wandb", "ray", "datatrove", "datasets", "webdataset", "pysam", "matplotlib", "mpl_toolkits", "scikit_learn", "sklearn",
    "aiohttp", "s3fs", "gcsfs", "moto", "mkdocs", "bio", "biopython", "py2bit", "twobitreader", "scipy", "pandas", "pytest", "hypothesis",
)  # fmt: skip


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for the installed packages, as if no extra were among them."""
    folder = tmp_path_factory.mktemp("packages")
    for installed in dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")):
        for path in Path(installed).iterdir():
            name = re.split(r"[-.]", path.name.lower())[0]
            if name not in EXTRAS and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder


def minimal(packages: Path, *words: object) -> str:
    """Runs the program with those packages alone, and gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "dnascale", *map(str, words)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{packages}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_any_extra_data_are_prepared_and_a_model_is_trained_evaluated_and_exported(
    packages: Path, tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    minimal(packages, "prepare", "builtin:human-cds", "--out", data)
    tiny = ["model.hidden_size=32", "model.layers=1", "model.heads=2", "model.intermediate_size=32", "model.context=64"]
    batch = ["train.global_batch_tokens=512", "train.micro_batch_tokens=512", "train.steps=2", "train.device=cpu"]
    more = [f"data.path={data}", f"run.dir={run}", "evaluation.windows=2"]
    assert "committed" in minimal(packages, "train", "nano", *tiny, *batch, *more)
    minimal(packages, "export", run, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_what_needs_an_extra_says_so(packages: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "dnascale", "prepare", "hf://someone/genes", "--out", str(tmp_path / "out")],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": f"{ROOT}:{packages}"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_told_how_to_complete(shell: str) -> None:
    assert "_DNASCALE_COMPLETE=" in _program(_DNASCALE_COMPLETE=f"source_{shell}")


def test_subcommands_are_completed() -> None:
    found = _program(_DNASCALE_COMPLETE="complete_bash", COMP_WORDS="dnascale ckpt ", COMP_CWORD="2")
    assert {"ls", "pin", "verify"} <= set(found.split())


def _program(**env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dnascale"], capture_output=True, text=True, check=True, env=os.environ | env
    )
    return done.stdout


@pytest.mark.slow
def test_the_wheel_and_the_sdist_hold_what_belongs_to_them(tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    shipped = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "dnascale").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith("dnascale-")} == shipped
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        top = {name.split("/")[1] for name in sdist.getnames()}
    assert {
        "dnascale",
        "launch",
        "tests",
        "docs",
        "examples",
        "benchmarks",
        "mkdocs.yml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
    } <= top


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]


def test_every_direct_dependency_has_a_tested_version_that_its_bound_allows() -> None:
    from packaging.requirements import Requirement
    from packaging.version import Version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        Requirement(text)
        for texts in (project["dependencies"], *project["optional-dependencies"].values())
        for text in texts
    ]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    for requirement in wanted:
        if requirement.name != "dnascale":
            assert requirement.name in pinned, f"constraints.txt lacks {requirement.name}"
            assert Version(pinned[requirement.name]) in requirement.specifier, requirement


def test_the_lock_has_hashes_for_the_tested_versions() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", lock, re.MULTILINE))
    assert len(locked) == len(re.findall(r"^[^ #\n]+==", lock, re.MULTILINE))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert {name: version for name, version in locked.items() if name in pinned} == {
        name: pinned[name] for name in pinned if name in locked
    }
    assert {"torch", "deepspeed", "transformers", "numpy"} <= set(locked)
    for block in re.split(r"^(?=[a-z0-9-]+==)", lock, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block, block


def test_github_runs_what_the_project_s_own_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = {name: [step.get("run", "") for step in job["steps"]] for name, job in workflow["jobs"].items()}
    assert "bash .ci/run" in commands["linux"]
    of_ci = re.findall(r"^make \w+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert set(of_ci) <= set(commands["macos"])
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    used = {word for texts in commands.values() for text in texts for word in re.findall(r"\bmake ([\w-]+)", text)}
    assert used <= set(targets)
