"""Learning from corrected scans: a new model is offered beside the old one, or the reason why there is none."""

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from meddelinea.errors import WeightsMissingError
from meddelinea.scan import Scan
from meddelinea.segmentation.model import load_model
from meddelinea.serving.app import create_app
from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.job import JobOutcome
from meddelinea.serving.learning import learn
from meddelinea.serving.models import Models
from meddelinea.volume import Volume
from support.serving import HERE, finished
from support.tiny_models import write_model


def corrected(folder: Path, scans: int) -> Path:
    """Corrected scans of bright boxes, a patient each."""
    kept = CorrectedScans(folder)
    for number in range(scans):
        mask = np.zeros((24, 24, 6), np.uint8)
        mask[4:12, 6 + number : 16 + number, 1:5], mask[14:20, 8:14, 1:5] = 1, 2
        values = np.where(mask > 0, 60 * mask.astype(np.int16), -100)
        scan = Scan(volume=Volume(values.astype(np.int16), np.diag([10.0, 10.0, 6.0, 1.0])), modality="CT")
        labels = {"spleen": 1, "liver": 2}
        kept.add(scan, Volume(mask, scan.volume.affine), labels, fingerprint=f"{number}" * 64, job=f"{number}" * 32)
    return kept.path(kept.all()[0].name)


def test_what_is_learnt_is_a_model_that_jobs_may_choose(tmp_path: Path) -> None:
    model, job = write_model(tmp_path), tmp_path / "job"
    job.mkdir()
    told: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, stage: str = "") -> None:
        told.append((done, total, stage))

    dataset = corrected(tmp_path / "corrected", 1)
    outcome = learn(job, str(model), dataset, steps=2, models=tmp_path / "models", progress=progress)
    assert isinstance(outcome, JobOutcome)
    assert (outcome.state, outcome.message) == ("done", "")
    assert outcome.learnt is not None
    assert outcome.learnt["model"] == "adapted-1"
    assert outcome.learnt["check"] == "none: one patient"
    assert [step[:2] for step in told if step[2].startswith("all")] == [(1, 2), (2, 2)]
    assert [path.name for path in job.iterdir()] == ["adaptation.json"]
    models = Models(tmp_path / "models", str(model))
    assert models.names() == ["model", "adapted-1"]
    assert models.find("adapted-1").labels == {"spleen": 1, "liver": 2}
    load_model(models.source("adapted-1"), "cpu")
    models.remove("adapted-1")
    assert models.names() == ["model"]
    for name in ("adapted-1", "model", "../model", "adapted-2/../adapted-1"):
        with pytest.raises(WeightsMissingError):
            models.remove(name)


def test_a_model_that_is_not_better_on_other_patients_is_not_offered(tmp_path: Path) -> None:
    model, job = write_model(tmp_path), tmp_path / "job"
    job.mkdir()
    dataset = corrected(tmp_path / "corrected", 2)
    outcome = learn(
        job, str(model), dataset, steps=1, models=tmp_path / "models", progress=lambda done, total, stage="": None
    )
    assert isinstance(outcome, JobOutcome)
    assert outcome.learnt is not None
    assert outcome.learnt["check"] == "each patient left out in turn"
    better = outcome.learnt["dice"]["mean"] > outcome.learnt["dice_before"]["mean"]
    assert (outcome.learnt["model"] is not None) == better == (tmp_path / "models").exists()


def test_what_cannot_be_learnt_is_refused_without_the_servers_paths(tmp_path: Path) -> None:
    model, job = write_model(tmp_path), tmp_path / "job"
    job.mkdir()
    dataset = corrected(tmp_path / "corrected", 1)
    next((dataset / "labelsTr").iterdir()).write_bytes(b"x")
    outcome = learn(
        job, str(model), dataset, steps=1, models=tmp_path / "models", progress=lambda done, total, stage="": None
    )
    assert isinstance(outcome, JobOutcome)
    assert outcome.state == "refused"
    assert "cannot be read" in outcome.message
    assert str(tmp_path) not in outcome.message


def test_a_server_learns_and_offers_what_it_learnt(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    corrected(tmp_path / "server" / "corrected", 1)
    with TestClient(create_app(tmp_path / "server", str(model)), base_url=HERE) as client:
        assert [len(dataset["cases"]) for dataset in client.get("/api/datasets").json()] == [1]
        begun = client.post("/api/learnings?steps=2").json()
        assert begun["kind"] == "learning"
        done = finished(client, begun["id"])
        assert (done["state"], done["learnt"]["model"]) == ("done", "adapted-1"), done["message"]
        assert [each["name"] for each in client.get("/api/info").json()["models"]] == ["model", "adapted-1"]
        assert [job["id"] for job in client.get("/api/jobs?kind=learning").json()] == [begun["id"]]
