"""Whether a machine multiplies faster in half precision."""

from __future__ import annotations

import torch


def bfloat16_is_fast(device: str, *, training: bool) -> bool:
    """Whether a network takes less time in bfloat16 than in float32 on a device, `cpu` or `cuda`.

    On a GPU it does where the hardware multiplies in it. On a processor a pass alone does with the products of AVX-512,
    a training step with AMX only.
    """
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch before 2.11 cannot tell. oneDNN, which multiplies, may be kept from what the processor has.
    if not hasattr(torch.cpu, "get_capabilities") or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16", False) or (has.get("avx512_bf16", False) and not training))
