"""`meddelinea demo`: a real CT from an installed package."""

from pathlib import Path

import pytest

from support.cli import Run, written


@pytest.mark.usefixtures("fake_model")
def test_demo_segments_the_shipped_scan(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("slicerio", reason="the demo's scan comes with slicerio")
    code, out, _ = run("demo", "-o", tmp_path / "new" / "demo")
    assert code == 0
    files = ["mask.json", "mask.nii.gz", "preview.png", "report.html", "statistics.json"]
    assert written(tmp_path / "new" / "demo") == files
    assert "liver" in out


def test_demo_without_its_scan_says_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meddelinea.cli.demo.find_spec", lambda name: None)
    code, _, err = run("demo", "-o", tmp_path / "demo")
    assert code == 5
    assert "pip install 'meddelinea[demo]'" in err
    assert written(tmp_path) == []
