"""The precision of a run's products: given, or chosen by what the machine multiplies fast."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator


def _of_this_machine(value: Any) -> Any:
    """The precision that a run file's value means here; what is none is left to pydantic."""
    if value is False:  # YAML takes a bare `no` for false
        return "no"
    if value != "auto":
        return value
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # torch before 2.11 cannot tell, and float32 is slower with AMX than bfloat16 but never as slow as that without.
        known = hasattr(torch.cpu, "get_capabilities")
        fast = known and torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bf16" if fast else "no"


#: `no` is float32. `auto` becomes `bf16` on a GPU or a processor with AMX that multiplies in it, and `no` elsewhere.
Precision = Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_of_this_machine)]
