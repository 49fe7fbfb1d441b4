"""What is said of an exception of another library fits into one line."""

import pytest

from meddelinea.errors import InputRefusedError, reason_of


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("bad magic", "bad magic"),
        ("\n  while parsing\n  at line 3", "while parsing"),
        ("two\tparts  apart", "two parts apart"),
        ("", "ValueError"),
        ("\n", "ValueError"),
    ],
)
def test_the_reason_is_the_first_line_or_the_type(message: str, said: str) -> None:
    assert reason_of(ValueError(message)) == said


def test_a_message_is_one_line_of_bearable_length_whatever_a_file_holds() -> None:
    error = InputRefusedError(
        "scan.dcm: RescaleSlope is '" + "\n\x1b[31m\x00x\xa0\u202e" * 1000 + "'; expected a number"
    )
    (finding,) = error.findings
    assert str(error) == finding.message
    assert len(str(error)) < 1500
    assert str(error).startswith("scan.dcm: RescaleSlope is '")
    assert str(error).endswith("'; expected a number")
    assert str(error).isprintable()
    assert str(InputRefusedError("caf\udce9.nii: no")) == "caf\udce9.nii: no"
