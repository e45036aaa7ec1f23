"""Which findings of Kervadec et al. 2026 (arXiv 2605.27033) hold for each bank, by the rules in `RULES`."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from masklearn.density.comparison import BankPair
from masklearn.density.measurements import LEARNED_KIND, MaskMeasurements, size_text
from masklearn.density.statistics import count_units
from masklearn.density.tables import Tables, select_rows
from masklearn.density.verdicts import ALPHA, Claim, Comparison, verdicts
from masklearn.evaluation.bootstrap import MIN_UNITS, expanded_tail, too_few

RULES = {
    "two phases": "The piecewise linear fit to mean TV over log10 of the relative size turns from its steepest descent "
    "to a flatter segment, and at that size at least half of the inputs recover the full model's top token; the "
    "p-value is that of the share of bootstrap resamples in which it does not.",
    "early core": "At the smallest size at which half of the inputs recover the full model's top token, the share of "
    "the first quarter of the layers in the subgraphs is larger than in the whole model, and larger than in the random "
    "control's subgraphs of the same inputs. It is not known if there is no such size below the full model's.",
    "heads enter late": "At that same size, the share of attention heads in subgraphs of nodes is smaller than in the "
    "whole model; random-matched subgraphs have as many by construction, so the model's share is the control. In "
    "subgraphs of edges, the share of attention edges is smaller than in the whole graph and than in random connected "
    "subgraphs. In subgraphs of positions, the share of those of heads is smaller than among all positions and than "
    "among random ones.",
    "density goes with uncertainty": "The rank correlation of density with the entropy of the full model's "
    "distribution is above 0, plain and given token frequencies and context length.",
    "sparse subgraphs are unigram-like": "At the smallest size (of edges: that can hold a path from a token to "
    "the output), more than half of the inputs have a subgraph that is nearer to the "
    "unigram distribution than to the full model, and more of them than random control subgraphs of the same inputs "
    "are: these are nearer to it as well where their output is flat.",
    "density is alike across models": "For every two learned banks of different models, with enough of the same inputs "
    "and sizes in the same unit, the inputs' densities agree given entropies and token frequencies (partial rank "
    "correlation above 0), and more so than the densities of random-matched subgraphs (paired bootstrap of the "
    "difference).",
}
"""When each finding holds: all of its estimates are on its side, and the largest of their two-sided p-values, corrected
for the number of verdicts (Holm), is at most 0.05. It is not known with fewer than `MIN_UNITS` inputs (or texts, if
these have several inputs; or groups, for shares of parts), and if no resample contradicts the finding, but there are
too many verdicts for so few resamples. No verdict compares sizes in nodes with sizes in edges."""
FIRST_QUARTER = "quarter 1"


def findings(measurements: Sequence[MaskMeasurements], tables: Tables) -> pd.DataFrame:
    """Return a row per bank and finding: the verdict, the numbers that decide it, and what would flip it."""
    claims = [claim for measured in measurements for claim in _bank_claims(measured, tables)]
    return verdicts([*claims, across_models(measurements, tables["across"])])


def _bank_claims(measured: MaskMeasurements, tables: Tables) -> list[Claim]:
    of_bank = {name: select_rows(table, bank=measured.name) for name, table in tables.items()}
    phases = of_bank["phases"].set_index("what")
    if lacking := _lacking(measured, has_phases=len(phases) > 0):
        reason, needs = lacking
        return [Claim(measured.name, finding, reason, needs=needs) for finding in list(RULES)[:-1]]
    own = {name: select_rows(table, kind=measured.own_kind) for name, table in of_bank.items()}
    head, refinement = phases.loc["head in place"], phases.loc["refinement begins"]
    at_head = select_rows(own["composition"], s=head["s"]).set_index("part")
    heads = "attention" if measured.unit == "edges" else "heads"
    return [
        _two_phases(measured, head, refinement, own["composition"]),
        _share_claim(measured, "early core", FIRST_QUARTER, at_head, above=True, has_control=True),
        _share_claim(measured, "heads enter late", heads, at_head, above=False, has_control=measured.unit != "nodes"),
        _uncertainty(measured, own["relations"]),
        _unigram_like(measured, of_bank["unigram"]),
    ]


def _lacking(measured: MaskMeasurements, has_phases: bool) -> tuple[str, str] | None:
    """Why a bank has no verdicts, and what they need; None if it has."""
    if not has_phases:
        can = " that can hold a path" if measured.n_short_sizes else ""
        return f"too few sizes{can}", f"at least 3 sizes{can}: --model.sizes log:12"
    kinds = [kind for kind in (measured.own_kind, measured.control_kind) if kind and not measured.is_finite(kind)]
    if kinds:
        return (
            f"outputs of {' and '.join(kinds)} subgraphs are not finite",
            "finite outputs, of edges with --edges recomputed",
        )
    few = too_few(count_units(measured.texts), measured.resampled)
    return (few, f"at least {MIN_UNITS} {measured.resampled}s: --data.limit 100") if few else None


def _two_phases(
    measured: MaskMeasurements, head: Mapping[str, Any], refinement: Mapping[str, Any], composition: pd.DataFrame
) -> Claim:
    finding, unit = "two phases", measured.unit
    if pd.isna(refinement["share"]):
        return Claim(measured.name, finding, "too few sizes to detect a bend", needs="more sizes: --model.sizes log:12")
    control = (
        "does not bend" if pd.isna(refinement["control_s"]) else f"bends at {size_text(refinement['control_s'], unit)}"
    )
    bend = (
        f"no flatter segment follows the steepest one ({refinement['slopes']})"
        if pd.isna(refinement["s"])
        else f"flatter from {size_text(refinement['s'], unit)} on ({refinement['fraction']:.0%})"
    )
    text = (
        f"{measured.own_kind}: TV per decade of size {refinement['slopes']}; {bend}, in {refinement['share']:.0%} of "
        f"resamples; top token recovered by half of the inputs at {size_text(head['s'], unit)}; "
        f"{measured.control_kind or 'no control'} {control}"
    )
    if measured.unit == "edges":
        shares = composition.drop_duplicates("part").set_index("part")["own_share"]
        mlps, residual = (f"{shares[part]:.2%}" for part in ("MLPs", "residual"))
        text += f"; of all edges MLPs' are {mlps} and residual ones {residual}"
    p, n = float(refinement["p"]), count_units(measured.texts)
    share = 1 - expanded_tail(p / 2, n)  # one that says as much as p, which counts a resample more on the other side
    share = min(share, float(refinement["in_order"]))  # a p of 1 says no more than that it is half or less
    what, null = "share of resamples with both phases in order", 1 - expanded_tail(ALPHA / 2, n)
    comparison = Comparison(what, share, share, share, p, n, measured.resampled, null, of_resamples=True)
    return Claim(measured.name, finding, text, [comparison])


def _share_claim(
    measured: MaskMeasurements, finding: str, part: str, at_head: pd.DataFrame, above: bool, has_control: bool
) -> Claim:
    """Return what decides on the share of a part, from its rows at the size at which half recover the top token."""
    s = at_head["s"].iloc[0] if len(at_head) else measured.full_size
    if s == measured.full_size:
        reason = "there is no size below the full model's at which half of the inputs recover its top token"
        return Claim(measured.name, finding, reason, needs="such a size: larger ones in --model.sizes")
    n, row = count_units(measured.texts_of_groups), at_head.loc[part]
    unit = measured.resampled if len(measured.mask.groups) == len(measured.names) else "group"
    if few := too_few(n, unit):
        needs = f"at least {MIN_UNITS} {unit}s, or masks of single texts: --model.scope input"
        return Claim(measured.name, finding, few, needs=needs)
    relative = Comparison(
        f"{part} over its share", row["relative"], row["low"], row["high"], row["relative_p"], n, unit, 1.0, above
    )
    comparisons = [relative]
    if has_control and measured.control_kind and not pd.isna(row.get("excess_p")):
        what = f"{part} minus {measured.control_kind}"
        comparisons.append(Comparison.of(what, row, "excess", n, unit, above=above))
    text = "; ".join(one.text() for one in comparisons)
    return Claim(measured.name, finding, f"{measured.own_kind} at {size_text(s, measured.unit)}: {text}", comparisons)


def _uncertainty(measured: MaskMeasurements, relations: pd.DataFrame) -> Claim:
    finding, found = "density goes with uncertainty", relations.set_index("with").loc["entropy"]
    if pd.isna(found["rho"]) or pd.isna(found["partial"]):
        note = found["note"] or found["partial_note"]
        return Claim(measured.name, finding, note, needs="inputs of different entropy, more of them: --data.limit 100")
    n, unit = count_units(measured.texts), measured.resampled
    plain = Comparison("rho", found["rho"], found["low"], found["high"], found["p"], n, unit)
    partial = Comparison.of(f"partial rho given {found['given'] or 'nothing'}", found, "partial", n, unit)
    text = f"{plain.text()}; {partial.text()}; {found['n']:.0f} inputs" + f" of {n} texts" * (unit == "text")
    return Claim(measured.name, finding, text, [plain, partial])


def _unigram_like(measured: MaskMeasurements, unigram: pd.DataFrame) -> Claim:
    at_size = select_rows(unigram, s=measured.sizes[min(measured.n_short_sizes, len(measured.sizes) - 1)])
    smallest = select_rows(at_size, kind=measured.own_kind).iloc[0]
    n, unit = count_units(measured.texts), measured.resampled
    share = Comparison.of("share nearer to the unigram", smallest, "nearer_to_unigram", n, unit, null=0.5)
    comparisons = [share]
    if measured.control_kind:
        comparisons.append(Comparison.of(f"share minus {measured.control_kind}", smallest, "excess", n, unit))
    estimates = "; ".join(one.text() for one in comparisons)
    text = f"at {size_text(smallest['s'], measured.unit)}: {estimates}; unigram of {measured.corpus}"
    return Claim(measured.name, "sparse subgraphs are unigram-like", text, comparisons)


def across_models(measurements: Sequence[MaskMeasurements], across: pd.DataFrame) -> Claim:
    """Return what decides whether learned densities agree between models; pairs that cannot be compared are named.

    Args:
        measurements: The banks.
        across: See `density_agreement`.
    """
    finding, comparisons = "density is alike across models", list[Comparison]()
    texts, skipped, bank_of = list[str](), list[str](), {measured.name: measured for measured in measurements}
    for pair in select_rows(across, kind=LEARNED_KIND, same_model=False).to_dict("records"):
        names = f"{pair['one']} and {pair['other']}"
        if " / " in pair["units"]:
            continue
        one = bank_of[pair["one"]]
        n, unit = count_units(BankPair.of(one, bank_of[pair["other"]]).texts), one.resampled
        if pd.isna(pair["excess_p"]) or pd.isna(pair["partial_p"]):
            skipped.append(f"{names} are not compared: {_why_undefined(pair, too_few(n, unit))}")
            continue
        partial = Comparison.of(f"partial rho of {names}", pair, "partial", n, unit)
        excess = Comparison.of("more than of random subgraphs by", pair, "excess", n, unit)
        comparisons += [partial, excess]
        texts.append(f"{partial.text()}, {excess.text()}, plain {pair['rho']:.2f}")
    if comparisons:
        return Claim("all", finding, "; ".join([*texts, *skipped]), comparisons)
    if len({measured.mask.model.fingerprint for measured in measurements}) < 2:
        return Claim(
            "all", finding, "a study of one model", needs="a second model on the same texts: --mask A --mask B"
        )
    needs = "learned masks of two models on the same texts, enough of them, with sizes in the same unit"
    reason = "no two models have learned masks with enough inputs in common and sizes in the same unit"
    return Claim("all", finding, "; ".join([reason, *skipped]), needs=needs)


def _why_undefined(pair: Mapping[Any, Any], few: str) -> str:
    """Why a pair of banks has no agreement, or none beside that of random subgraphs.

    Args:
        pair: Its row.
        few: Why there are too few texts, if there are.
    """
    notes = [pair[note] for note in ("note", "partial_note") if not pd.isna(pair[note]) and pair[note]]
    if notes:
        return notes[0].removeprefix("not defined: ")
    return few or "one of them has no random subgraphs, or too few whose outputs are finite"
