"""Flash attention of other packages: refused where it cannot be, tried before it is trusted. The packages are played."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn.attention import current_flash_attention_impl, register_flash_attention_impl

from dnascale.errors import UsageError
from dnascale.model import flash
from dnascale.model.attention import Attention

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _torch_own_afterwards() -> Iterator[None]:
    yield
    flash.use_flash_attention("torch", CUDA, "bf16")
    assert current_flash_attention_impl() is None


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device=None: "NVIDIA H100")


@pytest.fixture
def package(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn 3 as torch's registry sees it."""
    module = ModuleType("flash_attn_interface")
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    from torch.nn.attention import _registry

    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_IMPLS", dict(_registry._FLASH_ATTENTION_IMPLS))
    register_flash_attention_impl("FA3", register_fn=lambda: SimpleNamespace(remove=lambda: None))


@pytest.mark.parametrize(
    ("device", "precision", "capability", "sentence"),
    [
        ("cpu", "bf16", None, "for bf16 on CUDA, and this run is bf16 on cpu"),
        ("cuda", "fp32", (9, 0), "for bf16 on CUDA, and this run is fp32 on cuda"),
        ("cuda", "bf16", (8, 0), "kernels for compute capability 9.x, and NVIDIA A100 has 8.0"),
        ("cuda", "bf16", (9, 0), "needs the Python module flash_attn_interface, which is not installed: build"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    device: str, precision: str, capability: tuple[int, int], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device=None: "NVIDIA A100")
    with pytest.raises(UsageError, match=f"train.flash_attention=FA3 .*{sentence}"):
        flash.use_flash_attention("FA3", torch.device(device), precision)


def test_heads_that_no_flash_attention_takes_are_told(package: None) -> None:
    with pytest.raises(UsageError, match="no kernels for heads of 300 dimensions"):
        flash.use_flash_attention("FA3", CUDA, "bf16", head_size=300)


def test_a_package_that_is_broken_is_missed(hopper: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    with pytest.raises(UsageError, match="is not installed"):
        flash.use_flash_attention("FA4", CUDA, "bf16")


def test_a_package_within_one_that_is_not_there_is_missed_too(hopper: None) -> None:
    with pytest.raises(UsageError, match=r"flash_attn\.cute, which is not installed: pip install flash-attn-4"):
        flash.use_flash_attention("FA4", CUDA, "bf16")


def test_what_is_sound_takes_the_place_of_torchs_own(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(flash, "relative_error", lambda *what: tried.append(what) or 1e-3)
    before = Attention.choose(CUDA, torch.bfloat16, 64, 1024, 21, 64)
    flash.use_flash_attention("FA3", CUDA, "bf16")
    chosen = Attention.choose(CUDA, torch.bfloat16, 64, 1024, 21, 64)
    assert (before.kernel, chosen.kernel) == ("flash", "packed flash")
    assert str(chosen) == "variable-length FA3"
    assert tried == [("packed flash", CUDA, torch.bfloat16, 64, 64)]
    flash.use_flash_attention("torch", CUDA, "bf16")
    assert Attention.choose(CUDA, torch.bfloat16, 64, 1024, 21, 64).kernel == "flash"


def test_what_computes_wrongly_is_put_back(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "relative_error", lambda *_: float("nan"))
    with pytest.raises(UsageError, match=r"computes attention wrongly on this device \(relative error nan\)"):
        flash.use_flash_attention("FA3", CUDA, "bf16")
    assert current_flash_attention_impl() is None


def test_what_does_not_run_says_why(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> float:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(flash, "relative_error", fails)
    with pytest.raises(UsageError, match=r"does not run here \(RuntimeError: no kernel image is available\)"):
        flash.use_flash_attention("FA3", CUDA, "bf16")
    assert current_flash_attention_impl() is None
