"""MONAI, which is an extra: imported where a network is built, and not before."""

from __future__ import annotations

from typing import Any

from meddelinea.errors import UsageError


def monai_networks() -> Any:
    """The module `monai.networks`, with its `nets` and `blocks`.

    Raises
    ------
    UsageError
        If MONAI is not installed.
    """
    try:
        import monai.networks.blocks
        import monai.networks.nets
    except ImportError as error:
        raise UsageError(f"this network is MONAI's ({error}); pip install 'meddelinea[baselines]'") from error
    return monai.networks
