"""Curves: what is drawn is what the log holds."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from meddelinea.errors import InputRefusedError
from meddelinea.training.curves import learning_curves, smoothed, write_curves
from support.cli import Run
from support.tiny_models import run_config, write_blobs

LOG = [
    {
        "step": step,
        "seconds": 0.1 * step,
        "total": 3.0 / step,
        "diffusion": 2.0 / step,
        "segmentation": 1.0 / step,
        "gradient_norm": 9.0,
        "learning_rate": 1e-3,
        **({"dice": step / 100, "dice_paper": step / 50, "dice/liver": 0.3} if step % 10 == 0 else {}),
    }
    for step in range(1, 41)
]


def log(folder: Path, rows: list[dict[str, float]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def named(axes: Axes) -> dict[str, Line2D]:
    """The lines of the legend."""
    legend = axes.get_legend()
    assert legend is not None
    lines = {str(line.get_label()): line for line in axes.lines}
    return {text.get_text(): lines[text.get_text()] for text in legend.get_texts()}


def test_one_run_shows_its_losses_and_dice(tmp_path: Path) -> None:
    loss, dice = learning_curves([log(tmp_path / "first", LOG)]).axes
    parts = ["total", "diffusion", "segmentation"]
    assert list(named(loss)) == parts
    for part, raw in zip(parts, loss.lines[::2], strict=True):
        np.testing.assert_array_equal(raw.get_xdata(), range(1, 41))
        np.testing.assert_allclose(raw.get_ydata(), [row[part] for row in LOG])
        assert raw.get_color() == named(loss)[part].get_color()
    for key, line in zip(("dice", "dice_paper"), named(dice).values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [10, 20, 30, 40])
        np.testing.assert_allclose(line.get_ydata(), [row[key] for row in LOG if key in row])


def test_several_runs_stand_in_the_legend(tmp_path: Path) -> None:
    other = [{**row, "total": 5.0} for row in LOG[:20]]
    loss, dice = learning_curves([log(tmp_path / "k1", LOG), log(tmp_path / "k15", other)]).axes
    assert list(named(loss)) == list(named(dice)) == ["k1", "k15"]
    np.testing.assert_allclose(named(loss)["k15"].get_ydata(), 5.0)
    np.testing.assert_array_equal(named(dice)["k15"].get_xdata(), [10, 20])


def test_losses_of_unlike_size_get_a_logarithmic_axis(tmp_path: Path) -> None:
    alike = [{**row, "total": 5.0 + step / 100} for step, row in enumerate(LOG)]
    runs = [log(tmp_path / "far", LOG), log(tmp_path / "near", alike), log(tmp_path / "nearer", alike[:5])]
    assert [learning_curves(chosen).axes[0].get_yscale() for chosen in (runs[:1], runs[1:])] == ["log", "linear"]


def test_runs_of_one_name_are_told_apart_by_their_path(tmp_path: Path) -> None:
    runs = [log(tmp_path / place / "run", LOG) for place in ("x", "y")]
    assert list(named(learning_curves(runs).axes[0])) == ["x/run", "y/run"]
    with pytest.raises(InputRefusedError, match="named twice"):
        learning_curves([runs[0], runs[0]])


def test_smoothing_is_a_mean_of_neighbours_and_keeps_straight_lines() -> None:
    values = np.random.default_rng(0).normal(size=50)
    ours = smoothed(values, 7)
    for place in range(50):
        reach = min(3, place, 49 - place)
        assert ours[place] == pytest.approx(values[place - reach : place + reach + 1].mean())
    line = 3.0 - 0.5 * np.arange(20)
    np.testing.assert_allclose(smoothed(line, 9), line)
    np.testing.assert_allclose(smoothed(values, 1), values)


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    _, dice = learning_curves([log(tmp_path / "unvalidated", LOG[:5])]).axes
    assert [text.get_text() for text in dice.texts] == ["not measured"]
    loss, dice = learning_curves([log(tmp_path / "untrained", [{"step": 0, "seconds": 0.0, "dice": 0.5}])]).axes
    assert [text.get_text() for text in loss.texts] == ["not measured"]
    np.testing.assert_array_equal(dice.lines[0].get_ydata(), [0.5])


def test_a_loss_that_is_not_finite_or_switched_off_leaves_the_others(tmp_path: Path) -> None:
    rows = [{**row, "kl": 0.0} for row in LOG]
    rows[3]["total"] = float("nan")
    run = log(tmp_path / "run", rows)
    write_curves([run], tmp_path / "curves.png")
    loss = learning_curves([run]).axes[0]
    assert list(named(loss)) == ["total", "diffusion", "segmentation"]
    np.testing.assert_array_equal(named(loss)["total"].get_xdata(), [1, 2, 3, *range(5, 41)])


@pytest.mark.parametrize("content", [None, "", "{", "[1]\n", '{"total": 1}\n', '{"step": 1, "total": "low"}\n'])
def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputRefusedError) as caught:
        learning_curves([tmp_path])
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


# The commands


def test_the_command_writes_a_picture_or_one_line(run: Run, tmp_path: Path) -> None:
    folder = log(tmp_path / "run", LOG)
    code, out, err = run("curves", folder, "-o", tmp_path / "curves.png")
    assert (code, err) == (0, "")
    assert str(tmp_path / "curves.png") in out
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert picture.shape[1] > 1000
    assert picture.std() > 0.01

    code, _, err = run("curves", folder, tmp_path, "-o", tmp_path / "more.png")
    assert code == 3
    assert err.count("\n") == 1
    assert "metrics.jsonl" in err
    assert run("curves", folder, "-o", tmp_path / "curves.pdf")[0] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "run"]


def test_training_ends_with_its_curves(run: Run, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"data": {"crop": 32}, "steps": 2}
    config = run_config("codec", write_blobs(tmp_path / "store"), tmp_path / "out", **sections)
    (tmp_path / "run.json").write_text(config.model_dump_json())
    code, _, err = run("train", tmp_path / "run.json", "--quiet")
    assert code == 0, err
    assert matplotlib.image.imread(tmp_path / "out" / "curves.png").std() > 0.01
