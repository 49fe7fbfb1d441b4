"""The settings of a segmentation: what is invalid is refused when they are made."""

from typing import Any

import pytest

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.segmentation.sampling import Sampling

KNOWN = {"spleen": 1, "liver": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "0 sampling steps; expected 1..1000"),
        ({"steps": 1001}, "1001 sampling steps"),
        ({"scheduler": "euler"}, "unknown scheduler 'euler'; expected one of euler_ancestral, ddim"),
        ({"samples": 0}, "samples 0; expected at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "expected 0..2"),
        ({"batch_size": 0}, "batch size 0; expected at least 1"),
        ({"precision": "float16"}, "unknown precision 'float16'; expected one of auto, float32, bfloat16"),
        ({"organs": ()}, "no name"),
        ({"organs": ("liver", "spleen", "liver")}, "twice: liver, spleen, liver"),
    ],
)
def test_what_cannot_be_meant_is_refused_under_its_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        Sampling(**options)
    assert [refusal.value.parameter] == list(options)


def test_the_limits_themselves_are_accepted() -> None:
    for steps, seed in ((1, 0), (1000, 2**64 - 1)):
        Sampling(steps=steps, scheduler="lms", samples=1, seed=seed, batch_size=1, organs=("liver",))


def test_organs_are_chosen_of_those_that_a_model_knows() -> None:
    assert Sampling().labels(KNOWN) == KNOWN
    assert Sampling(organs=("liver",)).labels(KNOWN) == {"liver": 2}
    with pytest.raises(InputRefusedError, match="knows no brain, hand; expected some of: spleen, liver") as refusal:
        Sampling(organs=("brain", "liver", "hand")).labels(KNOWN)
    assert (refusal.value.code, refusal.value.parameter) == ("unknown_organ", "organs")
