"""What a run was made with: versions, hardware, code."""

import contextlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from dnascale.data.transport import without_secrets


def environment() -> dict[str, Any]:
    """Versions, hardware and code that a run was made with."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("dnascale", "torch", "transformers", "accelerate", "deepspeed", "numpy", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "command": [without_secrets(word) if "://" in word else word for word in sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "commit": _git_commit(),
        "devices": devices(),
        "cpu_threads": torch.get_num_threads(),
    }


def devices() -> list[str]:
    """The names of the GPUs; without CUDA what there is, and the host's memory, on which its micro-batches depend."""
    if count := torch.cuda.device_count():
        return [torch.cuda.get_device_name(number) for number in range(count)]
    kind = "MPS" if torch.backends.mps.is_available() else "CPU"
    return [f"{kind}, {psutil.virtual_memory().total / 1e9:.0f} GB"]


def _git_commit() -> str | None:
    """The commit of the dnascale checkout that is running, or None for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    with contextlib.suppress(OSError):  # no git on this machine
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=here, capture_output=True, text=True
        )
        return done.stdout.strip() or None
    return None
