"""The errors that MedDelinea raises on purpose.

A message is one line: the value met, what was expected, where, and the remedy. The command line prints it on stderr and
exits with the class's code; libraries built on this package catch `MedDelineaError`.
"""

from __future__ import annotations

from meddelinea.findings import Finding, Refusal, refuse


class MedDelineaError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UsageError(MedDelineaError):
    """The request cannot be meant: an unknown organ, scheduler or setting."""

    exit_code = 2


class InputRefusedError(MedDelineaError):
    """The input (or where its result should go) would give a wrong or lost mask.

    Parameters
    ----------
    message
        One line for people.
    code
        Stable name of the reason, for programs.
    findings
        All that was found, where it is more than the one reason.
    """

    exit_code = 3

    def __init__(self, message: str, code: Refusal = "refused", findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(message)
        self.code: Refusal = code
        self.findings = findings or (refuse(code, message),)


class PartialFailureError(MedDelineaError):
    """Some cases of a batch failed; the others are done."""

    exit_code = 4


class WeightsMissingError(MedDelineaError):
    """Weights are absent, incomplete, or not those that were asked for."""

    exit_code = 5


class LeakFoundError(MedDelineaError):
    """Test cases are among those that a model was trained on: scores on them would not say how it does on others."""

    exit_code = 6
