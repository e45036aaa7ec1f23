"""Settings that take one of a few values."""

from typing import Any, Literal

import pytest
from conftest import refused

import masklearn as ml
from masklearn.choices import choices, require_choices

Colour = Literal["red", "blue"]


def test_the_values_of_a_hint_by_hand() -> None:
    assert choices(Colour) == ("red", "blue")
    assert choices(Colour | None) == ("red", "blue", None)
    assert choices(bool | Literal["auto"]) == (True, False, "auto")
    for other in (str, int | None, bool, Colour | str, list[Colour]):
        assert choices(other) == ()


def test_a_value_is_one_of_those_named() -> None:
    hints = {"colour": Colour | None, "size": int, "other": Colour}
    require_choices("model", {"colour": "red", "size": "any"}, hints)
    require_choices("model", {"colour": None}, hints)
    message = refused(lambda: require_choices("model", {"colour": "Blue"}, hints))
    assert message == "model.colour is 'Blue'; it must be one of red, blue, None. Did you mean blue?"
    assert refused(lambda: require_choices("model", {"colour": 3}, hints)).endswith("one of red, blue, None")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ablation": "Mean"}, "Did you mean mean?"),
        ({"objective": "KL"}, "model.objective is 'KL'"),
        ({"budget": "proj"}, "Did you mean projected?"),
        ({"graph": "heads"}, "one of nodes, edges, positions"),
        ({"gates": "meanfield"}, "Did you mean mean-field?"),
        ({"steps": 3.0}, "model.steps is 3.0; it must be at least 1 and at most 1000000000, a whole number"),
        ({"temperature": 0.5}, "give two positive numbers"),
        ({"temperature": (1.0, float("inf"))}, "give two positive numbers"),
        ({"temperature": (1.0, 0.5, 0.2)}, "give two positive numbers"),
    ],
)
def test_a_learner_refuses_what_it_does_not_know(setting: dict[str, Any], message: str) -> None:
    """From Python, where no command line has checked it: another ablation would be learned under."""
    assert message in refused(lambda: ml.MaskLearner(**setting))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"truncation": "middle"}, "data.truncation is 'middle'; it must be one of right, left"),
        ({"bos": "sometimes"}, "one of auto, always, never"),
        ({"positions": "first"}, "data.positions is 'first'"),
    ],
)
def test_texts_refuse_what_they_do_not_know(setting: dict[str, Any], message: str) -> None:
    assert message in refused(lambda: ml.MaskData(task="names", **setting))
