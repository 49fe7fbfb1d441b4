"""Which precision a network is run in, by what a machine can multiply."""

import pytest
import torch

from meddelinea.models.precision import bfloat16_is_fast


@pytest.mark.parametrize(
    ("capabilities", "allowed", "segmenting", "training"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True, True, True),
        ({"amx_bf16": False, "avx512_bf16": True}, True, True, False),
        ({"avx512": True}, True, False, False),
        ({"amx_bf16": True, "avx512_bf16": True}, False, False, False),  # ONEDNN_MAX_CPU_ISA=AVX2
    ],
)
def test_a_processor_is_asked_what_it_multiplies(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], allowed: bool, segmenting: bool, training: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: allowed)
    assert bfloat16_is_fast("cpu", training=False) is segmenting
    assert bfloat16_is_fast("cpu", training=True) is training


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_asked_whether_it_does_so_itself(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    assert bfloat16_is_fast("cuda", training=False) is native
