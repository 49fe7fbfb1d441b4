"""Plans of datasets that differ: a crop of MRs, abdominal CTs, and large CTs of many organs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddelinea.errors import InputRefusedError
from meddelinea.fitting.plan import Base, Means, Plan, make_plan
from meddelinea.fitting.survey import CaseFacts, OrganFacts
from support.surveys import abdomens, case_facts, survey_of

TWO_CORES = Means(hours=2.0, clock="wall", cores=2, memory_gb=24.0)
SMALL = Base(name="small", folder=Path("small"), neighbours=1, neighbour_pairs=2, organs=("liver", "spleen"), unfit="")


def hippocampi(count: int = 20) -> tuple[CaseFacts, ...]:
    """Crops of a brain, 31 to 41 by 40 to 59 by 24 to 47 voxels of 1 mm."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(count):
        shape = tuple(int(n) for n in rng.integers((31, 40, 24), (42, 60, 48)))
        parts = {
            name: OrganFacts(
                ml=1.6, surface_mm2=900.0, centre_mm=(0.0, back, 0.0), slices=20, grey=(200.0, 400.0, 600.0)
            )
            for name, back in (("anterior", -8.0), ("posterior", 9.0))
        }
        changes: dict[str, Any] = {"shape": shape, "spacing_mm": (1.0, 1.0, 1.0), "shown": 25, "organs": parts}
        body = (shape[0] - 2.0, shape[1] - 2.0)
        cases.append(case_facts(f"h{number}", modality="MR", body_mm=body, **changes))
    cases[0] = replace(cases[0], shape=(41, 59, 47), body_mm=(39.0, 57.0))
    return tuple(cases)


def value_of(plan: Plan, what: str) -> str:
    return next(decision.value for decision in plan.decisions if decision.what == what)


def test_a_small_crop_is_seen_whole_in_half_voxels() -> None:
    plan = make_plan(survey_of(*hippocampi()), TWO_CORES, folds=3)
    grid = plan.preprocessing
    assert (grid.size, grid.spacing_mm, grid.slice_mm, grid.centre) == (128, 0.5, 1.0, "field")
    assert "percentiles" in value_of(plan, "grey values of MR")
    assert list(plan.stages) == ["codec", "base", "coarse", "fine"]
    data = plan.stages["fine"]["data"]
    assert data["augmentation"]["mirror"] == 0.5  # no side is an organ of its own
    assert data["augmentation"]["field"] == 0.0
    assert data["thickest"] == 1
    assert plan.stages["coarse"]["data"]["resolutions"] == [64]


def test_with_little_time_a_crop_is_seen_in_its_own_voxels_without_a_coarse_stage() -> None:
    plan = make_plan(survey_of(*hippocampi()), replace(TWO_CORES, hours=0.1), folds=3)
    assert (plan.preprocessing.size, plan.preprocessing.spacing_mm) == (64, 1.0)
    assert list(plan.stages) == ["codec", "base", "fine"]


def test_abdominal_cts_get_what_the_shipped_recipe_has() -> None:
    plan = make_plan(survey_of(*abdomens(18)), TWO_CORES, folds=3)
    grid = plan.preprocessing
    assert grid.size == 192
    assert 1.8 <= grid.spacing_mm <= 2.1
    assert (grid.slice_mm, grid.window_hu, grid.centre) == (3.0, (-125.0, 275.0), "body")
    fine = plan.stages["fine"]
    assert fine["data"]["augmentation"]["mirror"] == 0.0  # kidneys are told by their side
    assert fine["batch_size"] == 4
    assert (fine["data"]["neighbours"], fine["data"]["neighbour_pairs"]) == (1, 2)
    assert fine["data"]["augmentation"]["tilt_deg"] == 8
    assert [plan.stages[name]["optimiser"]["kind"] for name in ("coarse", "fine")] == ["muon", "muon"]


def test_planes_between_thick_slices_are_not_drawn() -> None:
    thick = [replace(case, spacing_mm=(*case.spacing_mm[:2], 8.0)) for case in abdomens(6)]
    plan = make_plan(survey_of(*thick), TWO_CORES, folds=3)
    assert plan.stages["fine"]["data"]["augmentation"]["tilt_deg"] == 0
    assert value_of(plan, "tilted planes") == "no"


def test_small_slices_are_not_trained_on_by_muon() -> None:
    plan = make_plan(survey_of(*hippocampi()), TWO_CORES, folds=3)
    assert [plan.stages[name]["optimiser"]["kind"] for name in ("coarse", "fine")] == ["adamw", "muon"]


def test_more_time_buys_finer_pixels_and_never_more_than_half_a_voxel() -> None:
    hours = (0.5, 2.0, 8.0, 100.0, 1000.0)
    sides = [make_plan(survey_of(*abdomens()), replace(TWO_CORES, hours=h), folds=3).preprocessing.size for h in hours]
    assert sides == sorted(sides)
    assert sides[0] < 192 < sides[2]
    assert sides[-1] == sides[-2] == 512
    crops = make_plan(survey_of(*hippocampi()), replace(TWO_CORES, hours=1000.0), folds=3).preprocessing
    assert (crops.size, crops.spacing_mm) == (128, 0.5)


def test_large_cts_of_many_organs_fit_the_memory() -> None:
    rng = np.random.default_rng(0)
    organs = {
        f"organ {n}": OrganFacts(
            ml=float(ml),
            surface_mm2=10 * float(ml),
            centre_mm=(0.0, 0.0, float(n)),
            slices=60,
            grey=(-50.0, 60.0, 250.0),
        )
        for n, ml in enumerate(rng.uniform(3, 1500, 25))
    }
    large = [
        case_facts(f"case{n}", shape=(512, 512, 400), spacing_mm=(0.8, 0.8, 1.0), organs=organs, shown=380)
        for n in range(30)
    ]
    plan = make_plan(survey_of(*large), replace(TWO_CORES, memory_gb=24.0, cores=8), folds=3)
    assert len(plan.organs) == 25
    assert plan.preprocessing.slice_mm > 1.5  # thin slices are averaged
    numbers = [float(word) for word in value_of(plan, "memory").split() if word.replace(".", "").isdigit()]
    training, reading = numbers
    assert plan.trainings * training <= 24.0
    assert reading <= 4.0
    narrow = make_plan(survey_of(*large), replace(TWO_CORES, memory_gb=training, cores=8), folds=3)
    assert narrow.trainings == 1


def test_a_window_holds_organs_that_are_no_soft_tissue() -> None:
    lungs = OrganFacts(ml=2000.0, surface_mm2=1e5, centre_mm=(0.0, 0.0, 0.0), slices=80, grey=(-980.0, -850.0, -400.0))
    cases = [replace(case, organs={"lungs": lungs}) for case in abdomens()]
    low, high = make_plan(survey_of(*cases), TWO_CORES, folds=3).preprocessing.window_hu
    assert low < -980.0 < -400.0 < high


def test_the_same_data_give_the_same_plan_in_any_order_and_folds_are_of_patients() -> None:
    cases = [replace(case, patient=f"p{number // 2}") for number, case in enumerate(abdomens(12))]
    one = make_plan(survey_of(*cases), TWO_CORES, folds=3, base=SMALL)
    other = make_plan(survey_of(*cases[::-1]), TWO_CORES, folds=3, base=SMALL)
    assert one.cases == other.cases
    assert one.stages == other.stages
    patients = [next(case.patient for case in cases if case.name == name) for name in one.cases]
    assert patients[::2] == patients[1::2]  # the cases of a patient stand together
    assert one.cases != tuple(case.name for case in cases)


def test_where_to_start_is_tried_only_where_that_can_be_measured() -> None:
    tried = make_plan(survey_of(*abdomens()), TWO_CORES, folds=3, base=SMALL)
    assert dict(tried.starts) == {
        "scratch": ("codec", "base", "coarse", "fine"),
        "base": ("coarse-from-small", "fine"),
    }
    assert tried.trial_minutes > 0
    seen = make_plan(survey_of(*abdomens()), TWO_CORES, folds=3, base=replace(SMALL, unfit="has seen them"))
    single = make_plan(survey_of(*abdomens(1)), TWO_CORES, folds=3, base=SMALL)
    for plan in (seen, single):
        assert set(plan.starts) == {"scratch"}
        assert plan.trial_minutes == 0
    asked = make_plan(survey_of(*abdomens()), TWO_CORES, folds=3, base=SMALL, scratch=False)
    assert set(asked.starts) == {"base"}


def test_folds_are_no_more_than_patients_and_none_of_a_single_one() -> None:
    assert make_plan(survey_of(*abdomens(2)), TWO_CORES, folds=3).folds == 2
    assert make_plan(survey_of(*abdomens(1)), TWO_CORES, folds=3).folds == 0
    with pytest.raises(InputRefusedError, match="no case is left"):
        make_plan(survey_of(), TWO_CORES, folds=3)


def test_the_time_of_all_trainings_is_within_what_was_given() -> None:
    for hours, cores in ((2.0, 2), (2.0, 1), (1.0, 16)):
        plan = make_plan(survey_of(*abdomens()), replace(TWO_CORES, hours=hours, cores=cores), folds=3)
        rounds = -(-(plan.folds + 1) // plan.trainings)
        assert rounds * plan.minutes <= hours * 60
        stages = [content["cpu_minutes"] for content in plan.stages.values()]
        assert sum(stages) == pytest.approx(plan.minutes)
