"""Faults of a dataset: each kind is found in the case that has it, and in no other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meddelinea.findings import refuse
from meddelinea.fitting.faults import Fault, find_faults
from meddelinea.fitting.survey import CaseFacts, survey
from support.surveys import abdomens, case_facts, placed, survey_of


def faults_of(*cases: CaseFacts) -> list[tuple[str, str, str]]:
    return [(fault.case, fault.code, fault.level) for fault in find_faults(survey_of(*cases))]


def test_cases_that_are_alike_have_no_fault() -> None:
    assert faults_of(*abdomens(20)) == []


def test_a_case_that_cannot_be_read_is_refused_with_its_reason() -> None:
    (fault,) = find_faults(survey_of(*abdomens(), broken={"case99": "no mask"}))
    assert fault == Fault(case="case99", code="unreadable", level="refuse", message="no mask")


def odd_one(**changes: object) -> tuple[CaseFacts, ...]:
    """Eleven cases that are alike and one, the last, that is not."""
    *others, last = abdomens(12)
    return (*others, replace(last, **changes))


def test_exchanged_kidneys_are_found_and_named() -> None:
    *others, last = abdomens(12)
    kidneys = placed(last, left_kidney=(-60.0, 40.0, 0.0), right_kidney=(60.0, 40.0, 0.0))
    (fault,) = find_faults(survey_of(*others, replace(last, organs=kidneys)))
    assert (fault.case, fault.code, fault.level) == ("case11", "exchanged", "refuse")
    assert "left kidney and right kidney" in fault.message


def test_an_organ_that_is_merely_large_is_not_taken_for_another() -> None:
    *others, last = abdomens(12)
    spleen = placed(
        last, spleen=(80.0, 30.0, -15.0)
    )  # its centre below that of the left kidney, by less than usual above
    assert ("case11", "exchanged", "refuse") not in faults_of(*others, replace(last, organs=spleen))


def test_a_mirrored_case_is_told_from_one_with_exchanged_ids() -> None:
    *others, last = abdomens(12)
    turned = {name: (-organ.centre_mm[0], *organ.centre_mm[1:]) for name, organ in last.organs.items()}
    organs = placed(last, **{name.replace(" ", "_"): centre for name, centre in turned.items()})
    assert faults_of(*others, replace(last, organs=organs)) == [("case11", "mirrored", "refuse")]


def test_a_dataset_whose_numbering_exchanges_the_sides_is_refused_as_a_whole() -> None:
    swapped = [
        replace(case, organs=placed(case, left_kidney=(-60.0, 40.0, 0.0), right_kidney=(60.0, 40.0, 0.0)))
        for case in abdomens(6)
    ]
    assert ("", "sides", "refuse") in faults_of(*swapped)


def test_few_cases_are_not_compared() -> None:
    *others, last = abdomens(4)
    kidneys = placed(last, left_kidney=(-60.0, 40.0, 0.0), right_kidney=(60.0, 40.0, 0.0))
    assert faults_of(*others, replace(last, organs=kidneys)) == []


def test_the_second_of_two_equal_scans_is_refused() -> None:
    assert faults_of(*odd_one(fingerprint="case03")) == [("case11", "duplicate", "refuse")]


def test_an_empty_mask_is_refused() -> None:
    assert ("case11", "no_organ", "refuse") in faults_of(*odd_one(organs={}))


def test_values_of_another_scale_are_refused_unless_most_scans_have_it() -> None:
    scale = refuse("rescaled", "the values run from 0 to 1")
    assert faults_of(*odd_one(refusal=scale)) == [("case11", "grey_values", "refuse")]
    alike = [replace(case, refusal=scale) for case in abdomens(6)]
    assert faults_of(*alike) == [("", "grey_values", "warn")]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"spacing_mm": (0.8, 0.8, 12.0)}, "spacing"),
        ({"modality": "MR"}, "modalities"),
    ],
)
def test_what_a_person_should_look_at_is_a_warning(changes: dict[str, object], code: str) -> None:
    met = faults_of(*odd_one(**changes))
    assert {(met_code, level) for _, met_code, level in met} == {(code, "warn")}


def test_organs_of_other_size_grey_and_place_and_absent_ones_are_warned_of() -> None:
    *others, last = abdomens(12)
    liver = last.organs["liver"]
    small = {**last.organs, "liver": replace(liver, ml=15.0)}
    dark = {**last.organs, "liver": replace(liver, grey=(-500.0, -400.0, -300.0))}
    gone = {name: organ for name, organ in last.organs.items() if name != "spleen"}
    high = {
        name: replace(organ, centre_mm=(*organ.centre_mm[:2], organ.centre_mm[2] + 170))
        for name, organ in last.organs.items()
    }
    for organs, code in ((small, "size_far"), (dark, "grey_far"), (gone, "missing_organ"), (high, "place_far")):
        met = faults_of(*others, replace(last, organs=organs))
        assert {(case, met_code, level) for case, met_code, level in met} == {("case11", code, "warn")}


def test_an_organ_that_no_case_shows_is_left_out_with_a_word() -> None:
    cases = abdomens(6)
    (fault,) = find_faults(survey_of(*cases, organs=("liver", "spleen", "left kidney", "right kidney", "uterus")))
    assert (fault.code, fault.level) == ("missing_organ", "warn")
    assert "uterus" in fault.message


def test_the_faulty_cases_of_the_hippocampus_are_found_and_no_other(data: Path) -> None:
    """One image without a label, two labels without an image; the first 30 good cases stand for all."""
    from meddelinea.data import datasets
    from meddelinea.data.case import FoundCases

    found = datasets.find_cases("msd", data / "msd_hippocampus")
    with pytest.MonkeyPatch.context() as patch:
        few = FoundCases(found.cases[:30], found.broken)
        patch.setattr("meddelinea.fitting.survey.find_cases", lambda layout, source: few)
        faults = find_faults(survey("msd", data / "msd_hippocampus"))
    numbers = ("010", "118", "281")
    assert [(fault.case, fault.code) for fault in faults] == [(f"hippocampus_{n}", "unreadable") for n in numbers]
    assert np.all([fault.level == "refuse" for fault in faults])
    assert case_facts("x").name == "x"
