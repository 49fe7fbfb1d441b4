"""The errors that MedDelinea raises on purpose.

A message is one line: the value found, the expected one, the place, and the remedy. The command line prints it on
stderr and exits with the code of the class; programs that use this package catch `MedDelineaError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meddelinea.findings import Finding, Refusal, refuse

if TYPE_CHECKING:
    from pydantic import ValidationError


#: Letters of a message.
_LONGEST = 1500


class MedDelineaError(Exception):
    """Base class of all errors that are raised on purpose.

    Parameters
    ----------
    message
        One line for people. It names parameters, never flags, because its reader may have called a function.
    parameter
        Name of the parameter that the remedy is about, such as `"modality"`. The command line adds its flag.
    """

    exit_code = 1

    def __init__(self, message: str, *, parameter: str | None = None) -> None:
        super().__init__(_line(message))
        self.parameter = parameter


class UsageError(MedDelineaError):
    """The request is invalid: an unknown organ, scheduler or setting."""

    exit_code = 2


class InputRefusedError(MedDelineaError):
    """The input would give a wrong mask, or the output cannot be written.

    Parameters
    ----------
    message, parameter
        See `MedDelineaError`.
    code
        Stable name of the reason, for programs.
    findings
        All findings, if there are more than this one reason.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        code: Refusal = "refused",
        findings: tuple[Finding, ...] = (),
        *,
        parameter: str | None = None,
    ) -> None:
        super().__init__(message, parameter=parameter)
        self.code: Refusal = code
        self.findings = findings or (refuse(code, str(self)),)


class OutputClashError(InputRefusedError):
    """An output would take the place of a file that is needed, or of another output."""

    exit_code = 2


class PartialFailureError(MedDelineaError):
    """Some cases of a batch failed; the others are done."""

    exit_code = 4


class WeightsMissingError(MedDelineaError):
    """Weights are missing, incomplete, or not the ones that were asked for."""

    exit_code = 5


class LeakFoundError(MedDelineaError):
    """Test cases are among those that a model was trained on, so scores on them say nothing about new patients."""

    exit_code = 6


def reason_of(error: BaseException) -> str:
    """The first line of what an exception of another library says; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return " ".join(lines[0].split()) if lines else type(error).__name__


def first_fault(error: ValidationError) -> str:
    """The first fault of a document that pydantic refused, in one line: where, what was expected, and the value."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    value = "" if fault["type"] in ("missing", "value_error") else f" (got {_shortened(repr(fault['input']))})"
    return f"{where}{': ' if where else ''}{fault['msg'].removeprefix('Value error, ')}{value}"


def _line(message: str) -> str:
    """A message as one line of bearable length: a damaged file may have any bytes where a value should be."""
    # Surrogates stand for bytes of a file's name that are no UTF-8: whoever prints them knows.
    kept = (letter.isprintable() or "\ud800" <= letter <= "\udfff" for letter in message)
    line = "".join(letter if is_kept else " " for letter, is_kept in zip(message, kept, strict=True))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 3 :]}"


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
