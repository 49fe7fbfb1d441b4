"""Which cases train, which choose, which test: by patient, never by slice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from meddelinea.errors import InputRefusedError


@dataclass(frozen=True)
class Split:
    """Names of cases; all cases of a patient are in the same one."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_by_patient(patients: Mapping[str, str], train: float, validation: float, seed: int) -> Split:
    """Draw shares of the patients; those left over are the test.

    A share above 0 gets at least one patient. Patients are ordered by a hash of the seed and their name, so that a
    patient more or less moves few of the others.

    Parameters
    ----------
    patients
        Name of a case -> its patient.
    train, validation
        Shares of the patients, together at most 1.

    Raises
    ------
    InputRefusedError
        If there are fewer patients than parts.
    """
    order = drawn_order(tuple(set(patients.values())), seed)
    shares = (train, validation, 1.0 - train - validation)
    parts = sum(share > 1e-9 for share in shares)
    if len(order) < parts:
        raise InputRefusedError(f"{len(order)} patients cannot be split into {parts} parts; name the cases instead")
    tested = min(round(shares[2] * len(order)) or int(shares[2] > 1e-9), len(order) - parts + 1)
    validated = min(round(validation * len(order)) or int(validation > 0), len(order) - tested - 1)
    trained = len(order) - tested - validated
    groups = (order[:trained], order[trained : trained + validated], order[trained + validated :])
    return Split(*(tuple(sorted(n for n, p in patients.items() if p in set(group))) for group in groups))


def few_shot(names: tuple[str, ...], share: float, seed: int) -> tuple[str, ...]:
    """A share of the volumes, at least one, in their given order; a larger share holds every smaller one."""
    chosen = drawn_order(names, seed)[: max(1, round(share * len(names)))]
    return tuple(name for name in names if name in set(chosen))


def drawn_order(names: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """The names in an order drawn by the seed, whatever order they come in; another name moves none past another."""
    return tuple(sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()))
