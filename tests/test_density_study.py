"""Correlations, comparisons of banks, and the study as a whole."""

# pyright: reportGeneralTypeIssues=false
# (pandas annotates comparisons as anything)

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from studies import falling, measured, of_edges, resample_little

from masklearn import density
from masklearn.density import comparison, correlations
from masklearn.density.findings import RULES, across_models
from masklearn.density.measurements import mean_true_entropy


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
    assert verdicts["one", "sparse subgraphs are unigram-like"] == "does not hold"  # nor more so than random ones
    assert verdicts["one", "early core"] == "does not hold"  # masks are random
    again = density.study(banks).tables
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, again[name])
    assert tables["findings"]["flips_with"].str.len().min() > 5


def test_sparse_subgraphs_are_unigram_like_only_if_random_ones_are_less_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """All learned subgraphs of one node are nearer to the unigram; of the random ones all, or a third."""
    monkeypatch.setattr("masklearn.density.statistics.N_PERMUTATIONS", 99)

    def row(control_tv: list[list[float]]) -> dict:
        findings = density.study([measured(falling(30), control_tv=control_tv)]).tables["findings"]
        return findings.set_index("finding").loc["sparse subgraphs are unigram-like"].to_dict()

    same = row([[0.9] * 4] * 30)
    assert same["verdict"] == "does not hold"
    assert same["flips_with"] == "share minus random-matched above 0.00; it is 0.00"
    assert "share minus random-matched 0.00 (0.00 to 0.00)" in same["measured"]
    assert row([[0.9 if i < 10 else 0.3] * 4 for i in range(30)])["verdict"] == "holds"


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


def test_only_learned_densities_decide_whether_models_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two banks of s-Trace agree, beside two learned ones; a third learned one shares too few inputs, and is named."""
    monkeypatch.setattr("masklearn.density.statistics.N_PERMUTATIONS", 99)
    full = {"entropy": np.random.default_rng(5).permutation(40).tolist()}
    learned = [
        measured(scattered(40, seed, 0.03), name, fingerprint=name, full=full)
        for seed, name in enumerate(("one", "other"))
    ]
    strace = [of_edges(bank, name=f"{bank.name} by s-trace") for bank in learned]
    across = comparison.density_agreement(strace, 0)
    assert across["excess"].notna().any()
    claim = across_models(strace, across)
    assert not claim.comparisons and claim.measured.startswith("no two models have learned masks with enough")
    banks = [*learned, *strace, measured(falling(9), "third", fingerprint="third")]
    claim = across_models(banks, comparison.density_agreement(banks, 0))
    assert len(claim.comparisons) == 2 and claim.measured.startswith("partial rho of one and other")
    assert "one and third are not compared: 9 inputs have all values, " in claim.measured
    assert "by s-trace" not in claim.measured


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


def test_few_inputs_that_two_banks_share_are_not_called_different() -> None:
    """Three texts, the same in both, one of which has another besides."""
    study = density.study([measured(falling(3), "one"), measured(falling(4), "other")])
    assert "not defined: one and other share 3 inputs, 4 are needed" in study.notes
    assert not any("different inputs" in note for note in study.notes)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sizes", [(1,), (1, 2), (1, 2, 5), (2, 5, 10, 15, 18, 19), (1, 5, 20)])
def test_small_studies_note_undefined_results_and_print_no_nan(
    n: int, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Findings and notes contain no NaN, and every undefined correlation has a note."""
    resample_little(monkeypatch)
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
