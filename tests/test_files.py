"""The writer of files: each appears whole or not at all, under a name that is checked before the work."""

from pathlib import Path

import pytest

from meddelinea.errors import InputRefusedError
from meddelinea.files import ensure_writable


def test_other_outputs_are_checked_by_their_own_ending(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "statistics.json", (".json",))
    with pytest.raises(InputRefusedError, match=r"\.json"):
        ensure_writable(tmp_path / "statistics.txt", (".json",))
    assert list(tmp_path.iterdir()) == []
