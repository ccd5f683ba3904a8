"""What Linux can know of training on a Mac: decisions with a GPU that is pretended, and the operations that it would be asked for.

Nothing here runs on Metal. The operations are those of a real step on the CPU, with attention as MPS computes it for training;
torch's own table of kernels says which of them Metal has.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from dnascale import device
from dnascale.device import choose_device
from dnascale.launch.doctor import compute
from dnascale.train.engines import compile_mode

#: What Metal cannot hold.
FOREIGN = {torch.float64, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64}


@pytest.fixture
def pretended_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("pretended_mac")
def test_a_mac_trains_on_its_gpu_by_itself() -> None:
    assert choose_device("auto") == "mps"
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize(("bf16", "expected"), [(2.0, "bf16"), (1.1, "fp32"), (0.3, "fp32"), (None, "fp32")])
def test_a_mac_takes_bf16_only_where_it_is_faster(
    bf16: float | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_device: torch.device, dtype: torch.dtype, _size: int) -> float:
        if dtype is torch.bfloat16:
            if bf16 is None:
                raise TypeError("BFloat16 is not supported on MPS")
            return bf16
        return 1.0

    monkeypatch.setattr(device, "measured_flops", measured)
    assert device.fastest_precision("mps") == expected


def test_nothing_is_compiled_on_a_mac_unless_asked_for() -> None:
    accelerator: Any = SimpleNamespace(device=torch.device("mps"), deepspeed_plugin=None)
    config: Any = SimpleNamespace(train=SimpleNamespace(compile=None))
    assert compile_mode(config, accelerator) is None
    config.train.compile = "layers"
    assert compile_mode(config, accelerator) == "layers"


def test_deepspeed_is_not_asked_for_on_a_mac() -> None:
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires("dnascale") or []]
    markers = [one.marker for one in wanted if one.name == "deepspeed"]
    assert markers
    for marker in markers:
        assert marker is not None
        assert not marker.evaluate({"sys_platform": "darwin", "extra": "deepspeed"})


class Recorder(TorchDispatchMode):
    """Names of the operations that run, and dtypes of the tensors that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "aten":
            self.operations.add(str(func).removeprefix("aten."))
        found = out if isinstance(out, (tuple, list)) else [out]
        self.dtypes |= {x.dtype for x in found if isinstance(x, torch.Tensor)}
        return out


@pytest.fixture(scope="module")
def recorded() -> Recorder:
    """Of three steps in fp32 and three under bf16 autocast."""
    recorder = Recorder()
    for kind in ("fp32", "bf16"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device, "fastest_precision", lambda _device, kind=kind: kind)
            step = compute.tiny_step(torch.device("cpu"))
            with sdpa_kernel(SDPBackend.MATH), recorder:
                step()
                step()
    return recorder


def kernels_of_metal() -> dict[str, bool]:
    """Whether Metal has an operation, by name with overload, from the table that torch ships."""
    import torchgen

    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = {entry["func"].partition("(")[0]: entry for entry in yaml.safe_load(table.read_text())}

    def has(entry: dict[str, Any]) -> bool:
        if delegate := entry.get("structured_delegate"):
            return has(entries[delegate])
        keys = {
            key.strip() for keys in entry.get("dispatch", {"CompositeImplicitAutograd": ""}) for key in keys.split(",")
        }
        return bool(
            keys
            & {
                "MPS",
                "CompositeExplicitAutograd",
                "CompositeImplicitAutograd",
                "CompositeExplicitAutogradNonFunctional",
            }
        )

    return {name: has(entry) for name, entry in entries.items()}


def test_metal_has_every_operation_of_a_step(recorded: Recorder) -> None:
    known = kernels_of_metal()
    assert not known["ormqr"]  # the table tells
    operations = {name.removesuffix(".default") for name in recorded.operations}
    assert {"mm", "_safe_softmax", "_fused_adamw_"} <= operations  # or the recorder saw no step
    missing = sorted(name for name in operations if not known.get(name, False))
    assert missing == []


def test_metal_can_hold_every_tensor_of_a_step(recorded: Recorder) -> None:
    assert recorded.dtypes & FOREIGN == set()
    assert torch.int64 in recorded.dtypes
