"""A device's peak is looked up by its whole name: no other card is taken for one of the table."""

from __future__ import annotations

import pytest
import torch

from dnascale.hardware import peak_flops


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H200", 989.4), ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 311.9), ("NVIDIA A10", 125.0), ("NVIDIA L4", 121.0), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L40", None), ("NVIDIA A10G", None), ("NVIDIA RTX A4000", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA H200 NVL", None), ("NVIDIA H100 NVL", 835.0),
    ],
)  # fmt: skip
def test_peaks_are_those_of_the_very_card(name: str, teraflops: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    found = peak_flops(torch.device("cuda"))
    assert found == (None if teraflops is None else pytest.approx(teraflops * 1e12))
