"""MedDelinea: medical image segmentation with controllable diffusion transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meddelinea.inference.api import Result, segment
    from meddelinea.inference.model import load_model

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "load_model", "segment"]

_HOMES = {
    "Result": "meddelinea.inference.api",
    "segment": "meddelinea.inference.api",
    "load_model": "meddelinea.inference.model",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import meddelinea` alone loads no torch."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'meddelinea' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
