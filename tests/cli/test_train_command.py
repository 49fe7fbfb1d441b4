"""`meddelinea train`: a run file -> a trained stage."""

from pathlib import Path

from support.cli import Run


def test_train_refuses_a_run_that_is_not_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("stage: magic\n")
    assert run("train", tmp_path / "absent.yaml")[0] == 3
    code, _, err = run("train", tmp_path / "run.yaml", "--set", "steps=3")
    assert code == 2
    assert err.count("\n") == 1
