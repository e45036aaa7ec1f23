"""Verdicts: comparisons that a claim needs, a correction for their number, and what would flip each verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import norm

from masklearn.density.statistics import CONFIDENCE, is_smallest_p
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
    """Inputs."""
    null: float = 0.0
    above: bool = True
    """Whether the claim needs the estimate above `null`; otherwise below."""
    of_resamples: bool = False
    """Whether the estimate is the share of bootstrap resamples on the claim's side, so that p is twice the rest."""

    @classmethod
    def of(cls, what: str, row: Mapping[str, Any], column: str, n: int, **settings: Any) -> "Comparison":
        """Read the columns of an estimate, `<column>`, `<column>_low`, `<column>_high` and `<column>_p`."""
        value, low, high, p = (float(row[f"{column}{end}"]) for end in ("", "_low", "_high", "_p"))
        return cls(what, value, low, high, p, n, **settings)

    @property
    def effect(self) -> float:
        """Distance from the value, positive on the side of the claim."""
        return (self.value - self.null) * (1 if self.above else -1)

    def text(self) -> str:
        """The estimate with its interval."""
        return f"{self.what} {self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def needs(self, factor: int, holds: bool) -> str:
        """What would flip the comparison, if effects keep their size and intervals shrink with the root of the inputs.

        Args:
            factor: What the correction multiplies the p-value by, see `holm_factors`.
            holds: Whether the comparison holds.
        """
        if self.of_resamples:
            least = f"{1 - ALPHA / (2 * factor):.4f}"
            return f"{self.what} at most {least}" if holds else f"{self.what} above {least}; it is {self.value:.4f}"
        side, sign = ("above", 1) if self.above else ("below", -1)
        error = (self.high - self.low) / (2 * norm.isf(ALPHA / 2))
        critical = float(norm.isf(ALPHA / 2 / factor))
        threshold = critical * error
        if holds:  # p-value and interval have resamples of their own: what flips a claim is never true of it already
            threshold = min(threshold, self.effect * critical / float(norm.isf(self.p / 2)))
            return f"{self.what} {'at most' if self.above else 'at least'} {self.null + sign * threshold:.2f}"
        if self.effect <= 0:
            return f"{self.what} {side} {self.null:.2f}; it is {self.value:.2f}"
        n = max(self.n + 1, math.ceil(self.n * (threshold / self.effect) ** 2))
        if n <= MAX_INPUTS:
            return f"{self.what} as now ({self.value:.2f}) on about {n:,} inputs"
        return f"{self.what} further {side} {self.null:.2f}; it is {self.value:.2f}"


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
    def p(self) -> float | None:
        """The largest p-value, since all comparisons must hold; None if there are none."""
        return max((one.p for one in self.comparisons), default=None)


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
        return UNKNOWN if claim.p is not None and is_smallest_p(claim.p) else FAILS
    return HOLDS


def _flips_with(claim: Claim, p_holm: float | None, factor: int, n_verdicts: int) -> str:
    """What would flip the verdict: the condition that would break first, or all that are missing.

    Args:
        claim: The claim.
        p_holm: Its corrected p-value, or None if it has none.
        factor: What the correction multiplies its p-value by.
        n_verdicts: Verdicts that are corrected for.
    """
    if p_holm is None:
        return claim.needs
    verdict = _verdict(claim, p_holm)
    if verdict == UNKNOWN:
        return (
            f"fewer banks in one study: {n_verdicts} verdicts are corrected for, and too few resamples are drawn for a "
            f"p-value below {claim.p:.2g}"
        )
    if verdict == HOLDS:
        weakest = max(claim.comparisons, key=lambda one: (one.p, -one.effect / max(one.high - one.low, 1e-9)))
        return weakest.needs(factor, holds=True)
    lacking = [one for one in claim.comparisons if one.effect <= 0 or one.p * factor > ALPHA]
    return "; ".join(dict.fromkeys(one.needs(factor, holds=False) for one in lacking))
