"""Verdicts: comparisons that a claim needs, a correction for their number, and what would flip each verdict."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import t as student

from masklearn.density.statistics import is_smallest_p
from masklearn.evaluation.bootstrap import CONFIDENCE, expanded_tail
from masklearn.evaluation.holm import holm, holm_factors

ALPHA = 1 - CONFIDENCE
"""Level of every verdict, after the correction for their number."""
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "not known"
"""The verdicts."""
MAX_INPUTS = 10**5
"""Inputs above which a verdict says that the effect is hardly there instead of how many it needs."""


@dataclass(frozen=True)
class Comparison:
    """One comparison that a claim needs: an estimate with its interval, a value, and the side that the claim is on."""

    what: str
    """What is estimated."""
    value: float
    low: float
    high: float
    p: float
    """Two-sided p-value of the estimate against `null`."""
    n: int
    """What was resampled: inputs, texts or groups."""
    unit: str = "input"
    """What `n` counts, in the singular."""
    null: float = 0.0
    above: bool = True
    """Whether the claim needs the estimate above `null`; otherwise below."""
    of_resamples: bool = False
    """Whether the estimate is the share of bootstrap resamples on the claim's side, so that p is twice the rest."""

    @classmethod
    def of(cls, what: str, row: Mapping[str, Any], column: str, n: int, unit: str, **settings: Any) -> "Comparison":
        """Read the columns of an estimate, `<column>`, `<column>_low`, `<column>_high` and `<column>_p`."""
        value, low, high, p = (float(row[f"{column}{end}"]) for end in ("", "_low", "_high", "_p"))
        return cls(what, value, low, high, p, n, unit, **settings)

    @property
    def effect(self) -> float:
        """Distance from the value, positive on the side of the claim."""
        return (self.value - self.null) * (1 if self.above else -1)

    def text(self) -> str:
        """The estimate with its interval."""
        return f"{self.what} {self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def needs(self, factor: int, holds: bool) -> str:
        """What would flip the comparison, if effects keep their size and standard errors shrink with the root of `n`.

        Intervals reach as many standard errors to both sides as Student's t distribution says.

        Args:
            factor: What the correction multiplies the p-value by, see `holm_factors`.
            holds: Whether the comparison holds.
        """
        tail = ALPHA / 2 / factor
        if self.of_resamples:
            least = f"{1 - expanded_tail(tail, self.n):.4f}"
            return f"{self.what} at most {least}" if holds else f"{self.what} above {least}; it is {self.value:.4f}"
        side, sign = ("above", 1) if self.above else ("below", -1)
        critical, error = self._t(tail), (self.high - self.low) / 2 / self._t(ALPHA / 2)
        if holds:  # p-value and interval have resamples of their own: what flips a claim is never true of it already
            threshold = min(critical * error, self.effect * critical / self._t(self.p / 2))
            return f"{self.what} {'at most' if self.above else 'at least'} {self.null + sign * threshold:.2f}"
        if self.effect <= 0:
            return f"{self.what} {side} {self.null:.2f}; it is {self.value:.2f}"

        def is_enough(n: int) -> bool:
            return bool(student.isf(tail, n - 1) * error * math.sqrt(self.n / n) <= self.effect)

        more = range(self.n + 1, MAX_INPUTS + 1)
        enough = bisect_left(more, True, key=is_enough)
        if enough < len(more):
            return f"{self.what} as now ({self.value:.2f}) on about {more[enough]:,} {self.unit}s"
        return f"{self.what} further {side} {self.null:.2f}; it is {self.value:.2f}"

    def _t(self, tail: float) -> float:
        """Standard errors beyond which an estimate is with this probability."""
        return float(student.isf(tail, self.n - 1))


@dataclass(frozen=True)
class Claim:
    """What decides one finding of one bank."""

    bank: str
    finding: str
    measured: str
    """The numbers that decide, in words; or why there are none."""
    comparisons: Sequence[Comparison] = ()
    """All must hold; none if the verdict is not known."""
    needs: str = ""
    """What an unknown verdict needs."""

    @property
    def weakest(self) -> Comparison | None:
        """The comparison with the largest p-value, which decides since all must hold; None if there are none."""
        return max(self.comparisons, key=lambda one: (one.p, -one.effect / max(one.high - one.low, 1e-9)), default=None)

    @property
    def p(self) -> float | None:
        """The largest p-value; None if there are none."""
        return self.weakest and self.weakest.p


def verdicts(claims: Sequence[Claim]) -> pd.DataFrame:
    """Decide claims: one holds if all of its estimates are on its side and its corrected p-value is at most `ALPHA`.

    A claim that only its correction keeps from holding is not known if resampling can yield no smaller p-value.
    """
    tested = [claim.p for claim in claims if claim.p is not None]
    corrected = iter(zip(holm(tested), holm_factors(tested, ALPHA), strict=True))
    rows = []
    for claim in claims:
        p_holm, factor = (None, 0) if claim.p is None else next(corrected)
        rows.append(
            {
                "bank": claim.bank,
                "finding": claim.finding,
                "verdict": _verdict(claim, p_holm),
                "measured": claim.measured,
                "p": claim.p,
                "p_holm": p_holm,
                "flips_with": _flips_with(claim, p_holm, factor, len(tested)),
            }
        )
    return pd.DataFrame(rows)


def verdict_text(row: Mapping[Any, Any]) -> str:
    """A row of the table in lines: the verdict, what was measured, and what would flip it."""
    p = "" if pd.isna(row["p_holm"]) else f" (corrected p {row['p_holm']:.2g})"
    change = "it needs" if row["verdict"] == UNKNOWN else "it flips with"
    return f"{row['bank']}: {row['finding']}: {row['verdict']}{p}\n  {row['measured']}\n  {change}: {row['flips_with']}"


def _verdict(claim: Claim, p_holm: float | None) -> str:
    if p_holm is None:
        return UNKNOWN
    if any(one.effect <= 0 for one in claim.comparisons):
        return FAILS
    if p_holm > ALPHA:
        return UNKNOWN if claim.weakest and is_smallest_p(claim.weakest.p, claim.weakest.n) else FAILS
    return HOLDS


def _flips_with(claim: Claim, p_holm: float | None, factor: int, n_verdicts: int) -> str:
    """What would flip the verdict: the condition that would break first, or all that are missing.

    Args:
        claim: The claim.
        p_holm: Its corrected p-value, or None if it has none.
        factor: What the correction multiplies its p-value by.
        n_verdicts: Verdicts that are corrected for.
    """
    if p_holm is None or claim.weakest is None:
        return claim.needs
    verdict = _verdict(claim, p_holm)
    if verdict == UNKNOWN:
        return (
            f"fewer banks in one study, or more {claim.weakest.unit}s: {n_verdicts} verdicts are corrected for, and "
            f"too few resamples are drawn for a p-value below {claim.weakest.p:.2g}"
        )
    if verdict == HOLDS:
        return claim.weakest.needs(factor, holds=True)
    lacking = [one for one in claim.comparisons if one.effect <= 0 or one.p * factor > ALPHA]
    return "; ".join(dict.fromkeys(one.needs(factor, holds=False) for one in lacking))
