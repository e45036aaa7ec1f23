"""Correlations, comparisons of banks, and the study as a whole."""

# pyright: reportGeneralTypeIssues=false
# (pandas annotates comparisons as anything)

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import falling, measured

from masklearn import density
from masklearn.density import comparison, correlations
from masklearn.density.findings import RULES
from masklearn.density.measurements import mean_true_entropy
from masklearn.density.statistics import N_RESAMPLES, bootstrap_p, holm
from masklearn.density.verdicts import Claim, Comparison, verdicts

# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_holm_matches_values_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_lowers_a_p_value(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(p_values, kind="stable")] == sorted(corrected)


def test_a_bootstrap_p_value_doubles_the_smaller_tail() -> None:
    assert bootstrap_p(np.array([-1.0, 1, 2, 3])) == pytest.approx(2 * 2 / 5)
    assert bootstrap_p(np.array([1.0, 2, 3, 4]), null=9) == pytest.approx(2 / 5)


def test_a_verdict_needs_the_right_side_and_a_corrected_p_value() -> None:
    """Of four claims with p 0.02, Holm leaves none; alone the same claim holds. A significant opposite does not."""

    def claim(value: float, p: float) -> Claim:
        return Claim("a bank", f"{value} {p}", "", [Comparison("rho", value, value - 0.2, value + 0.2, p, 100)])

    assert verdicts([claim(0.3, 0.02)])["verdict"].tolist() == ["holds"]
    assert set(verdicts([claim(0.3, 0.02)] * 4)["verdict"]) == {"does not hold"}
    assert verdicts([claim(-0.9, 0.0002)])["verdict"].tolist() == ["does not hold"]
    assert verdicts([Claim("a bank", "x", "", needs="more")])["verdict"].tolist() == ["not known"]


def test_what_flips_a_verdict_matches_values_worked_out_by_hand() -> None:
    """A half width of 0.196 is a standard error of 0.1, so one verdict needs an effect of 0.196."""
    holding = Comparison("rho", 0.5, 0.304, 0.696, 0.0002, 100)
    assert holding.needs(1, holds=True) == "rho at most 0.20"
    weak = Comparison("rho", 0.098, 0.098 - 0.196, 0.098 + 0.196, 0.3, 100)
    assert weak.needs(1, holds=False) == "rho as now (0.10) on about 400 inputs"
    opposite = Comparison("share", 1.2, 1.0, 1.4, 0.03, 100, null=1.0, above=False)
    assert opposite.needs(1, holds=False) == "share below 1.00; it is 1.20"


def test_shares_of_resamples_flip_at_the_corrected_level() -> None:
    """Of five verdicts, 1 % of the resamples may be on the two sides together."""
    one = Comparison("share", 0.99, 0.99, 0.99, 0.02, 100, null=0.975, of_resamples=True)
    assert one.needs(5, holds=False) == "share above 0.9950; it is 0.9900"
    assert one.needs(5, holds=True) == "share at most 0.9950"


def test_no_verdict_fails_because_too_few_resamples_are_drawn() -> None:
    """No resample contradicts 51 claims, and the smallest p-value of a resampling is too large for so many."""
    smallest = bootstrap_p(np.ones(N_RESAMPLES))

    def claims(n: int, value: float = 0.5, p: float = smallest) -> list[Claim]:
        return [Claim("a bank", str(i), "", [Comparison("rho", value, 0.4, 0.6, p, 100)]) for i in range(n)]

    assert set(verdicts(claims(50))["verdict"]) == {"holds"}
    unknown = verdicts(claims(51))
    assert set(unknown["verdict"]) == {"not known"}
    assert unknown["flips_with"].str.startswith("fewer banks in one study: 51 verdicts").all()
    assert set(verdicts(claims(51, value=-0.5))["verdict"]) == {"does not hold"}
    assert set(verdicts(claims(51, p=2 * smallest))["verdict"]) == {"does not hold"}


def test_true_entropy_is_that_of_the_language() -> None:
    assert mean_true_entropy("<s> pick four of".split(), [3]) == pytest.approx(math.log(4))
    assert mean_true_entropy("<s> pick four of".split(), [2, 3]) == pytest.approx(math.log(4) / 2)
    assert mean_true_entropy("<s> once upon".split(), [2]) is None


def test_inputs_are_matched_across_models_by_their_text() -> None:
    one, other = measured(falling(12), "one"), measured(falling(12), "other", fingerprint="beef")
    shuffled = replace(other, contexts=other.contexts[::-1], results={
        kind: replace(of_kind, texts={
            metric: values.flip(-2 if metric == "recovered" else -1) for metric, values in of_kind.texts.items()
        })
        for kind, of_kind in other.results.items()
    })  # fmt: skip
    for second in (other, shuffled):
        row, *_ = comparison.density_agreement([one, second], 0).query("kind == 'learned'").to_dict("records")
        assert (row["rho"], row["n"], row["same_model"]) == (pytest.approx(1), 12, False)


# --- the study --------------------------------------------------------------------------------------------------------


def test_every_finding_gets_a_verdict_and_the_study_is_reproducible() -> None:
    banks = [measured(falling(30), name, fingerprint=name) for name in ("one", "other")]
    tables = density.study(banks).tables
    verdicts = tables["findings"].set_index(["bank", "finding"])["verdict"]
    assert set(verdicts.index.get_level_values(1)) == set(RULES)
    assert verdicts["one", "density goes with uncertainty"] == "holds"  # entropy grows with density
    assert verdicts["one", "sparse subgraphs are unigram-like"] == "holds"
    assert verdicts["one", "early core"] == "does not hold"  # masks are random
    again = density.study(banks).tables
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, again[name])
    assert tables["findings"]["flips_with"].str.len().min() > 5


def scattered(n: int, seed: int, spread: float) -> list[list[float]]:
    """TVs of n inputs whose densities are in a common order but for noise of a given spread."""
    rng = np.random.default_rng(seed)
    level = 0.4 + 0.4 * np.arange(n) / n + spread * rng.normal(size=n)
    return [[min(1.0, max(0.0, x * share)) for share in (1.1, 0.9, 0.6, 0.3)] for x in level]


def test_densities_are_alike_across_models_only_if_random_subgraphs_agree_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both pairs agree equally; only in the first are the densities of random subgraphs unrelated."""
    monkeypatch.setattr("masklearn.density.statistics.N_PERMUTATIONS", 999)
    entropy = np.random.default_rng(5).permutation(60).tolist()

    def verdict(control_spread: float) -> dict:
        banks = [
            measured(
                scattered(60, seed, 0.03), name, fingerprint=name, full={"entropy": entropy, "loss": entropy},
                control_tv=scattered(60, seed + 7, control_spread),
            )
            for seed, name in enumerate(("one", "other"))
        ]  # fmt: skip
        tables = density.study(banks).tables
        (row,) = tables["across"].query("kind == 'learned'").to_dict("records")
        assert row["excess_low"] < row["excess"] < row["excess_high"]
        return tables["findings"].set_index("bank").loc["all"].to_dict()

    assert verdict(control_spread=5.0)["verdict"] == "holds"
    alike = verdict(control_spread=0.0)
    assert alike["verdict"] == "does not hold"
    assert "more than of random subgraphs by" in alike["flips_with"]


def test_what_entropy_explains_is_no_agreement() -> None:
    """Two densities that share nothing but the order of entropy."""
    level = np.arange(80.0)
    banks = [
        measured(scattered(80, seed, 0.05), name, fingerprint=name, full={"entropy": level.tolist()})
        for seed, name in enumerate(("one", "other"))
    ]
    row = comparison.density_agreement(banks, 0).query("kind == 'learned'").iloc[0]
    assert row["rho"] > 0.7
    assert row["partial_low"] < 0 < row["partial_high"]


def test_a_study_of_one_model_says_that_a_verdict_needs_two() -> None:
    findings = density.study([measured(falling(6), "one"), measured(falling(6), "again")]).tables["findings"]
    row = findings.set_index("bank").loc["all"]
    assert (row["verdict"], row["measured"]) == ("not known", "a study of one model")
    assert "--mask A --mask B" in row["flips_with"]


def test_a_single_input_has_no_intervals() -> None:
    study = density.study([measured(falling(1))])
    assert study.tables["curve"]["tv_low"].isna().all()
    assert "not known" in set(study.tables["findings"]["verdict"])
    assert any("a single input: no intervals and no correlations" in note for note in study.notes)
    assert all(study.tables["relations"]["rho"].isna())


def test_constant_entropy_gets_a_note_and_is_not_printed_as_nan() -> None:
    study = density.study([measured(falling(8), full={"entropy": [0.7] * 8})])
    table = study.tables["relations"]
    (row,) = table[(table["kind"] == "learned") & (table["with"] == "entropy")].to_dict("records")
    assert row["note"] == "not defined: the full model's entropy is the same for all 8 inputs"
    findings = study.tables["findings"].set_index("finding")
    assert findings.loc["density goes with uncertainty", "verdict"] == "not known"
    assert "nan" not in "".join(map(density.verdict_text, study.tables["findings"].to_dict("records")))


def test_too_few_sizes_get_a_note() -> None:
    study = density.study([measured([[0.5, 0.4]] * 5, sizes=(1, 2))])
    assert any("has 2 sizes (1, 2), and densities and phases need 3: no density" in note for note in study.notes)
    assert len(study.tables["phases"]) == 0


def test_banks_over_different_inputs_get_a_note() -> None:
    other = replace(measured(falling(6), "other"), contexts=[f"else {i}" for i in range(6)], source="another file")
    study = density.study([measured(falling(5), "one"), other])
    (note,) = (note for note in study.notes if "different inputs" in note)
    assert note == "different inputs (0 shared): one has 5 inputs from a file, other has 6 inputs from another file"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sizes", [(1,), (1, 2), (1, 2, 5), (2, 5, 10, 15, 18, 19), (1, 5, 20)])
def test_small_studies_note_undefined_results_and_print_no_nan(n: int, sizes: tuple[int, ...]) -> None:
    """Findings and notes contain no NaN, and every undefined correlation has a note."""
    tv = [[0.9 - 0.1 * i - 0.01 * j for i in range(len(sizes))] for j in range(n)]
    study = density.study([measured(tv, sizes=sizes), measured(tv, "other", sizes=sizes, fingerprint="beef")])
    text = " ".join([*map(density.verdict_text, study.tables["findings"].to_dict("records")), *study.notes])
    assert "nan" not in text.lower()
    undefined = study.tables["relations"].query("rho.isna()")
    assert (undefined["note"] != "").all()
    if n < 4 or len(sizes) < 3:
        assert set(study.tables["relations"]["rho"].isna()) == {True}
        assert study.notes


def test_only_the_first_pairs_of_many_incomparable_banks_get_notes_of_their_own() -> None:
    banks = [replace(measured(falling(5), f"run {i}"), contexts=[f"{i} {j}" for j in range(5)]) for i in range(4)]
    notes = [note for note in density.study(banks).notes if "inputs" in note or "pairs" in note]
    assert [note[:16] for note in notes[:3]] == ["different inputs"] * 3
    assert notes[3:] == ["3 more pairs of banks cannot be compared: see the table across"]


def test_token_densities_are_in_the_order_of_the_text() -> None:
    names = ["0:10", "0:2", "1:1", "0:1"]
    table = correlations.token_densities(measured(falling(4), names=names, tokens=["c", "b", "d", "a"]))
    assert table["token"].tolist() == ["a", "b", "c", "d"]
    assert len(correlations.token_densities(measured(falling(4)))) == 0
