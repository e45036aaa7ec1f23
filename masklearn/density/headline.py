"""The result of a study in one sentence: how large subgraphs must be to come half-way to the full model."""

from collections.abc import Sequence

import numpy as np

from masklearn.density.curves import MIN_CURVE_SIZES
from masklearn.density.measurements import MaskMeasurements
from masklearn.density.phases import MeanCurve

HALF = 0.5
"""The mean TV distance that the sentence is about."""


def headline(measurements: Sequence[MaskMeasurements]) -> str:
    """Say which share of the nodes or edges of every bank gives a mean TV of one half, and which of random ones."""
    with_curve = [measured for measured in measurements if measured.n_curve_sizes >= MIN_CURVE_SIZES]
    if not with_curve:
        return "No density curve: it needs at least three sizes, of edges such as can hold a path."
    known = [measured for measured in with_curve if measured.is_finite(measured.own_kind)]
    if not known:
        return "No density curve: outputs of subgraphs are not finite."
    own = [f"{_percent(measured, measured.own_kind)} of the {measured.unit} of {measured.name}" for measured in known]
    controls = [(measured, measured.control_kind) for measured in known if measured.control_kind]
    random = [_percent(measured, kind) for measured, kind in controls if measured.is_finite(kind)]
    control = f"; of random subgraphs, {_listed(random)}" if random else ""
    return f"A mean TV distance of {HALF} from the full model takes {_listed(own)}{control}."


def half_way(measured: MaskMeasurements, kind: str) -> float:
    """Find the relative size at which mean TV falls to one half, linear in log size; at least the curve's smallest."""
    curve = MeanCurve.of(measured, kind)
    tv = np.append(curve.tv.mean(1), np.zeros(len(curve.x) - len(curve.tv)))
    first = int((tv <= HALF).argmax())
    if first == 0:
        return float(10 ** curve.x[0])
    falling = slice(first - 1, first + 1)
    return float(10 ** np.interp(-HALF, -tv[falling], curve.x[falling]))


def _percent(measured: MaskMeasurements, kind: str) -> str:
    found, smallest = half_way(measured, kind), 10 ** MeanCurve.of(measured, kind).x[0]
    at_most = "at most " if np.isclose(found, smallest) else ""
    return f"{at_most}{100 * found:.2g} %"


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
