"""A ray cluster, joined for as long as there is work for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from meddelinea.errors import UsageError


@contextmanager
def joined(address: str, cores: int | None = None) -> Iterator[ModuleType]:
    """The module ray, connected to a cluster.

    Parameters
    ----------
    address
        The cluster's head, as `ray.init` takes it: HOST:PORT, `auto`, or `local` for a cluster of this machine alone.
    cores
        Of a `local` cluster; those of the machine where None.

    Raises
    ------
    UsageError
        If ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("work on a cluster needs ray; install it with: pip install 'meddelinea[cluster]'") from error
    own = cores if address == "local" else None
    try:
        ray.init(address=address, num_cpus=own, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # a plain one where the machine is too busy to start a cluster in time
        reason = " ".join(str(error).split())
        raise UsageError(f"no ray cluster at '{address}' ({reason}); start one with: ray start --head") from error
    try:
        yield ray
    finally:
        ray.shutdown()
