"""Every device preset is complete, plausible, and says where each number comes from."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from lowtide.rewriter.errors import LowtideError
from lowtide.rewriter.measure.device_presets import device_names, load_device, preset_of


def test_the_presets_are_these():
    assert device_names() == ["a100-80gb", "cpu", "h100-80gb", "h200-141gb", "rtx4090"]


@pytest.mark.parametrize("name", device_names())
def test_a_preset_has_every_rate_and_a_source_for_every_number(name):
    preset = load_device(name)
    assert set(preset.flops_per_second) == {"fp64", "fp32", "tf32", "bf16", "fp16"}
    assert all(rate > 0 for rate in preset.flops_per_second.values())
    without_source = {"name", "kind", "threads", "torch_names", "sources"}
    assert set(preset.sources) == {field.name for field in fields(preset)} - without_source
    assert preset.memory_bytes > 2**30
    assert preset.memory_bytes_per_second >= preset.host_bytes_per_second > 0
    assert 0 < preset.launch_seconds < 1e-4
    assert preset.kind in ("cpu", "cuda")


def test_memory_is_rounded_as_the_devices_allocator_rounds_it():
    assert load_device("a100-80gb").rounded(1) == 512
    assert load_device("a100-80gb").rounded(1024) == 1024
    assert load_device("cpu").rounded(1001) == 1001


def test_the_rate_follows_the_dtype():
    preset = load_device("h100-80gb")
    assert preset.rate(torch.bfloat16) > preset.rate(torch.float32, tensor_float_32=True)
    assert preset.rate(torch.float32, tensor_float_32=True) > preset.rate(torch.float32)
    assert preset.rate(torch.int64) == preset.rate(torch.float32)


def test_an_unknown_device_is_answered_with_the_known_ones():
    with pytest.raises(LowtideError, match=r"'tpu'; choose one of a100-80gb, cpu, h100-80gb"):
        load_device("tpu")


def test_this_machines_processor_has_a_preset():
    assert preset_of(torch.device("cpu")).name == "cpu"


def test_a_device_that_no_preset_describes_is_named():
    with pytest.raises(LowtideError, match="describes 'meta'"):
        preset_of(torch.device("meta"))
