"""What is said of an exception of another library fits into one line."""

import pytest

from meddelinea.errors import reason_of


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
