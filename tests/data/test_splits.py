"""Splits: by patient, complete, repeatable, and stable when patients join."""

from itertools import pairwise

import pytest

from meddelinea.data.splits import few_shot, split_by_patient
from meddelinea.errors import InputRefusedError

#: Two scans of each of forty patients.
PATIENTS = {f"{patient:02d}_{kind}": f"{patient:02d}" for patient in range(40) for kind in ("t1", "t2")}


def test_every_case_is_in_one_part_and_no_patient_in_two() -> None:
    split = split_by_patient(PATIENTS, 0.8, 0.1, seed=0)
    parts = (split.train, split.validation, split.test)
    assert sorted(name for part in parts for name in part) == sorted(PATIENTS)
    assert [len(part) for part in parts] == [64, 8, 8]  # 80:10:10
    patients = [{PATIENTS[name] for name in part} for part in parts]
    assert sum(len(part) for part in patients) == len(set.union(*patients))


def test_ninety_to_ten_leaves_no_test() -> None:
    split = split_by_patient(PATIENTS, 0.9, 0.1, seed=0)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [72, 8, 0]


def test_the_seed_decides_and_the_order_of_cases_does_not() -> None:
    backwards = dict(reversed(PATIENTS.items()))
    assert split_by_patient(PATIENTS, 0.8, 0.1, 3) == split_by_patient(backwards, 0.8, 0.1, 3)
    assert split_by_patient(PATIENTS, 0.8, 0.1, 3) != split_by_patient(PATIENTS, 0.8, 0.1, 4)


def test_a_patient_more_moves_few_of_the_others() -> None:
    more = {**PATIENTS, "40_t1": "40"}
    before, after = (set(split_by_patient(cases, 0.8, 0.1, 0).train) for cases in (PATIENTS, more))
    assert len(before - after) <= 2  # the scans of one patient


@pytest.mark.parametrize("count", [2, 3, 5, 9, 30])
@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.1, 0.8), (0.05, 0.05), (0.9, 0.1), (0.3, 0.0), (0.98, 0.01)])
def test_no_part_that_is_asked_for_is_empty(count: int, shares: tuple[float, float]) -> None:
    patients = {str(i): str(i) for i in range(count)}
    asked = [True, shares[1] > 0, sum(shares) < 0.999]
    if count < sum(asked):
        with pytest.raises(InputRefusedError, match=f"{count} patients cannot be split into {sum(asked)} parts"):
            split_by_patient(patients, *shares, 0)
        return
    split = split_by_patient(patients, *shares, 0)
    assert [bool(part) for part in (split.train, split.validation, split.test)] == asked


def test_few_shot_shares_are_nested_and_never_empty() -> None:
    names = tuple(f"case{i:03d}" for i in range(200))
    chosen = [few_shot(names, share, seed=1) for share in (0.001, 0.01, 0.1, 0.25, 1.0)]
    assert [len(part) for part in chosen] == [1, 2, 20, 50, 200]
    for less, more in pairwise(chosen):
        assert set(less) <= set(more)
    assert list(chosen[3]) == sorted(chosen[3])  # the given order
    assert few_shot(names, 0.01, seed=2) != chosen[1]
