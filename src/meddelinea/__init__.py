"""MedDelinea: medical image segmentation with controllable diffusion transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meddelinea.version import __version__

if TYPE_CHECKING:
    from meddelinea.results.result import Result, segment
    from meddelinea.segmentation.model import load_model
    from meddelinea.volume import Volume

__all__ = ["Result", "Volume", "__version__", "load_model", "segment"]

_HOMES = {
    "Result": "meddelinea.results.result",
    "segment": "meddelinea.results.result",
    "load_model": "meddelinea.segmentation.model",
    "Volume": "meddelinea.volume",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import meddelinea` alone loads no torch."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'meddelinea' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
