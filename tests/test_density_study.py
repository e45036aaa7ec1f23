"""Correlations, comparisons of banks, and the study as a whole."""

# pyright: reportGeneralTypeIssues=false
# (pandas annotates comparisons as anything)

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from studies import falling, masks, measured, of_edges, resample_little

from masklearn import density
from masklearn.density import comparison, correlations
from masklearn.density.findings import RULES, across_models


def test_true_entropy_is_that_of_the_language() -> None:
    assert correlations.mean_true_entropy("<s> pick four of".split(), [3]) == pytest.approx(math.log(4))
    assert correlations.mean_true_entropy("<s> pick four of".split(), [2, 3]) == pytest.approx(math.log(4) / 2)
    assert correlations.mean_true_entropy("<s> once upon".split(), [2]) is None


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
    for name in ("N_RESAMPLES", "N_PERMUTATIONS"):
        monkeypatch.setattr(f"masklearn.density.statistics.{name}", 999)
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
    resample_little(monkeypatch)
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


def test_fewer_than_ten_inputs_have_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine inputs, or two of each of nine texts."""
    resample_little(monkeypatch)
    names = [f"{i}:{at}" for i in range(9) for at in (1, 2)]
    for bank, few in ((measured(falling(9)), "9 inputs"), (measured(falling(18), names=names), "9 texts")):
        study = density.study([bank])
        of_bank = study.tables["findings"].query("bank == 'a run'")
        assert len(of_bank) == 5 and set(of_bank["verdict"]) == {"not known"}
        assert set(of_bank["measured"]) == {f"{few}; at least 10 are needed"}
        assert set(of_bank["flips_with"]) == {f"at least 10 {few.split()[1]}: --data.limit 100"}
        assert f"a run has no intervals: {few}; at least 10 are needed" in study.notes
    findings = density.study([measured(falling(10))]).tables["findings"].set_index("finding")
    assert findings.loc["early core", "verdict"] != "not known"


def test_shares_of_parts_are_resampled_over_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty inputs that share nine masks, or one, have no verdict on the parts that masks keep."""
    resample_little(monkeypatch)
    bank = measured(falling(30))
    for n_groups, few in ((9, "9 groups"), (1, "1 group")):
        results = {kind: replace(found, masks=found.masks[:, :, :n_groups]) for kind, found in bank.results.items()}
        mask = replace(bank.mask, mask=bank.mask.mask[:n_groups], scores=bank.mask.scores[:n_groups],
                       groups=bank.mask.groups[:n_groups])  # fmt: skip
        shared = replace(bank, mask=mask, results=results, group_index=[i % n_groups for i in range(30)])
        findings = density.study([shared]).tables["findings"].set_index("finding")
        assert findings.loc["early core", "verdict"] == findings.loc["heads enter late", "verdict"] == "not known"
        assert findings.loc["early core", "measured"] == f"{few}; at least 10 are needed"
        assert findings.loc["density goes with uncertainty", "verdict"] != "not known"


@pytest.mark.parametrize("last_size", [10, 20])
def test_parts_have_no_verdict_if_no_subgraph_recovers_the_top_token(
    last_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The top token is recovered below a TV of 0.99: nowhere, or by the full model, which is among the sizes."""
    resample_little(monkeypatch)
    tv = [[1.0, 1.0, 1.0, 0.0 if last_size == 20 else 1.0]] * 12
    bank = measured(tv, sizes=(1, 2, 5, last_size))
    findings = density.study([bank]).tables["findings"].set_index("finding")
    for finding in ("early core", "heads enter late"):
        assert findings.loc[finding, "verdict"] == "not known"
        assert findings.loc[finding, "measured"].startswith("there is no size below the full model's at which half")


def test_inputs_of_one_text_are_resampled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve texts, and the same with every input three times over: estimates, intervals and p-values are the same."""
    monkeypatch.setattr("masklearn.density.statistics.N_RESAMPLES", 499)
    one = measured(falling(12), kept=masks(12))
    three = measured([row for row in falling(12) for _ in range(3)], kept=masks(12).repeat_interleave(3, 0),
                     names=[f"{i}:{at}" for i in range(12) for at in (1, 2, 3)],
                     full={"entropy": [float(i) for i in range(12) for _ in range(3)]})  # fmt: skip
    tables = [density.study([bank]).tables for bank in (one, three)]
    for name in ("curve", "phases", "composition", "unigram"):
        pd.testing.assert_frame_equal(*(table[name] for table in tables))
    found, expected = (table["findings"].set_index("finding") for table in tables[::-1])
    for finding in ("early core", "heads enter late", "sparse subgraphs are unigram-like"):
        assert found.loc[finding, "p"] == expected.loc[finding, "p"]
    assert " texts" in found.loc["early core", "flips_with"] and " inputs" in expected.loc["early core", "flips_with"]
    assert "36 inputs of 12 texts" in found.loc["density goes with uncertainty", "measured"]


def test_agreement_leaves_out_inputs_whose_density_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random subgraph of one of 41 inputs has no finite output: all is as with the other 40."""
    resample_little(monkeypatch)
    full = {"entropy": np.random.default_rng(5).permutation(40).tolist()}
    banks = []
    for seed, name in enumerate(("one", "other")):
        tv, control_tv = (scattered(40, seed + more, 0.1) for more in (0, 7))
        banks.append(measured(tv, name, fingerprint=name, full=full, control_tv=control_tv))
    expected = comparison.BankPair.of(*banks).excess(0)
    for kind in ("learned", "random-matched"):
        banks[0].results[kind].texts["tv"][..., -1] = math.nan
    pair = comparison.BankPair.of(*banks)
    first = comparison.BankPair.of(*(replace(bank, contexts=[*bank.contexts[:-1], bank.name]) for bank in banks))
    assert pair.excess(0) == pytest.approx(first.excess(0)) and pair.excess(0) != expected


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
    notes = [note for note in density.study(banks).notes if "different inputs" in note or "pairs" in note]
    assert [note[:16] for note in notes[:3]] == ["different inputs"] * 3
    assert notes[3:] == ["3 more pairs of banks cannot be compared: see the table across"]


def test_token_densities_are_in_the_order_of_the_text() -> None:
    names = ["0:10", "0:2", "1:1", "0:1"]
    table = correlations.token_densities(measured(falling(4), names=names, tokens=["c", "b", "d", "a"]))
    assert table["token"].tolist() == ["a", "b", "c", "d"]
    assert len(correlations.token_densities(measured(falling(4)))) == 0
