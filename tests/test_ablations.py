"""What closed nodes emit: every ablation, on every family, compared with model surgery."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_surgery
import pytest
import torch
from conftest import Run, refused, tiny_gpt2, tiny_llama
from families import BY_NAME, FAMILIES, Family
from family_table import MAX_LOGIT_ERROR, example_gates, random_texts, relative_error
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import masklearn as ml
from masklearn import evaluation
from masklearn.ablation import at_positions
from masklearn.cli import evaluate
from masklearn.cli.evaluate_command import _ablation_table
from masklearn.masking import ActivationStats, MaskedLM, ablation_from_means
from masklearn.selection.scorer import MaskScorer

ROWS = 4
LENGTHS = torch.tensor([7, 4, 6, 4])


def batch() -> tuple[Tensor, Tensor]:
    """Make texts of unequal length, and a mask that is False at padding."""
    real = torch.arange(7) < LENGTHS[:, None]
    return random_texts(ROWS).masked_fill(~real, 0), real


def expected_emissions(family: Family, lm: Any, name: str, corrupted: Tensor) -> list[model_surgery.NodeOutputs]:
    """Compute what the closed nodes of every text emit, by model surgery."""
    ids, real = batch()
    if name == "resample":
        return [model_surgery.node_outputs(family, lm, row) for row in corrupted]
    outputs = [model_surgery.node_outputs(family, lm, row[is_real]) for row, is_real in zip(ids, real, strict=True)]

    def mean(values: list[Tensor]) -> Tensor:
        overall = torch.cat(values, 1).mean(1, keepdim=True)  # (layers, 1, width)
        if name in ("mean", "learned"):
            return overall.expand(-1, 7, -1)
        by_position = [torch.stack([v[:, t] for v in values if v.shape[1] > t]).mean(0) for t in range(7)]
        return torch.stack(by_position, 1)

    heads, mlps = mean([o.heads for o in outputs]), mean([o.mlps for o in outputs])
    if name == "learned":
        heads, mlps = shifted(heads), shifted(mlps)
    return [model_surgery.NodeOutputs(heads, mlps)] * ROWS


def shifted(means: Tensor) -> Tensor:
    """Turn means into values that stand for learned constants."""
    return 2 * means + 0.1


def ablation(masked_lm: MaskedLM, name: str, corrupted: Tensor) -> ml.Ablation:
    if name == "resample":
        return masked_lm.resampled(corrupted)
    ids, real = batch()
    found = masked_lm.mean_ablation([(ids[:1], real[:1]), (ids[1:, :6], real[1:, :6])], name == "mean-positional")
    if name == "learned":
        heads, mlps = (tuple(map(shifted, values)) for values in (found.heads, found.mlps))
        return ml.Ablation("learned", heads, mlps)
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_closed_nodes_emit_the_values_of_the_ablation(family: Family) -> None:
    lm = family.build()
    masked_lm, corrupted = MaskedLM(lm), random_texts(2 * ROWS)[ROWS:]
    gates = example_gates(masked_lm.graph)[[0, 2, 4, 5]]
    names = ("mean", "mean-positional", "resample", "learned") if family in FAMILIES[:30] else ("resample",)
    for name in names:
        with ml.gated(lm, gates.flatten(1), ablation(masked_lm, name, corrupted)):
            found = lm(random_texts(ROWS)).logits
        expected = model_surgery.logits(
            family, lm, random_texts(ROWS), gates, expected_emissions(family, lm, name, corrupted)
        )
        assert relative_error(found, expected) < MAX_LOGIT_ERROR, name


@pytest.mark.parametrize("name", ["mean", "mean-positional", "resample"])
@pytest.mark.parametrize("family", [BY_NAME[name] for name in ("gpt2", "opt", "falcon", "gemma2", "olmo2", "mixtral")],
                         ids=lambda family: family.name)  # fmt: skip
def test_the_gradient_of_every_gate_is_nonzero_and_equals_its_central_difference(family: Family, name: str) -> None:
    lm = family.build().to(family.finest_dtype)
    lm.set_experts_implementation("eager")
    masked_lm = MaskedLM(lm)
    closed = ablation(masked_lm, name, random_texts(ROWS)[:1])
    text = random_texts(9)[8:]

    def log_probability(rows: Tensor) -> Tensor:
        with ml.gated(lm, rows, closed):
            return lm(text.expand(len(rows), -1)).logits[:, -1].log_softmax(-1)[:, 7]

    for point in (example_gates(masked_lm.graph)[2], torch.zeros(2, 5)):  # the second with all nodes closed
        gates = point.flatten().double().requires_grad_()
        (found,) = torch.autograd.grad(log_probability(gates[None]).sum(), gates)
        steps = 1e-3 * torch.eye(len(gates), dtype=torch.float64)
        with torch.no_grad():
            slope = (log_probability(gates + steps) - log_probability(gates - steps)) / 2e-3
        assert_close(found, slope.to(found), atol=1e-3 * slope.abs().max().item(), rtol=0)
        assert (found.abs() > 1e-5 * slope.abs().max()).all()


@pytest.mark.parametrize("lm", [tiny_llama(), tiny_gpt2()], ids=["llama", "gpt2"])
def test_each_row_is_resampled_from_its_own_corrupted_input(lm: Any, tokens: Tensor, everywhere: Tensor) -> None:
    """With K gate vectors for every input."""
    masked_lm = MaskedLM(lm, ml.Ablation("resample"))
    corrupted = tokens.flip(1)
    gates = torch.rand(3, 2, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(0))
    found = masked_lm(tokens, everywhere, gates, corrupted).unflatten(1, tokens.shape)
    for k in range(3):
        for i in range(2):
            alone = masked_lm(tokens[i : i + 1], everywhere[:1], gates[k, i][None, None], corrupted[i : i + 1])
            assert_close(found[k, i], alone[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ml.UserError, match="resample ablation needs corrupted inputs, and these texts have none"):
        masked_lm(tokens, everywhere, gates)
    with pytest.raises(ml.UserError, match="none are given"), ml.gated(lm, gates[0, 0], ml.Ablation("resample")):
        lm(tokens)
    with pytest.raises(ml.UserError, match="does not fit"), ml.gated(lm, gates[0, 0], masked_lm.resampled(tokens)):
        lm(tokens[:1].repeat(3, 1))


def test_resampling_an_input_from_itself_changes_nothing(masked_lm: MaskedLM, tokens: Tensor) -> None:
    with ml.gated(masked_lm.lm, torch.zeros(masked_lm.graph.n_nodes), masked_lm.resampled(tokens)):
        found = masked_lm.lm(tokens).logits
    assert_close(found, masked_lm.lm(tokens).logits, atol=1e-5, rtol=1e-5)


def test_open_gates_change_nothing_whatever_the_ablation(masked_lm: MaskedLM, tokens: Tensor) -> None:
    plain = masked_lm.lm(tokens).logits
    real = torch.ones_like(tokens, dtype=torch.bool)
    for closed in (masked_lm.resampled(tokens.flip(1)), masked_lm.mean_ablation([(tokens, real)], True)):
        with ml.gated(masked_lm.lm, torch.ones(masked_lm.graph.n_nodes), closed):
            assert torch.equal(masked_lm.lm(tokens).logits, plain)


def test_positions_beyond_the_longest_observed_text_emit_the_overall_mean() -> None:
    values = torch.arange(4.0).view(1, 4, 1, 1)  # three positions, and the mean of all
    assert at_positions(values, 2).flatten().tolist() == [0, 1]
    assert at_positions(values, 6).flatten().tolist() == [0, 1, 2, 3, 3, 3]
    assert at_positions(values[:, :1], 6).flatten().tolist() == [0]


@given(
    batch_sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99), positional=st.booleans()
)
def test_means_do_not_depend_on_the_batches(batch_sizes: list[int], seed: int, positional: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    stats, rows = ActivationStats(2, positional), []
    for inputs in batch_sizes:
        lengths = torch.randint(1, 6, (inputs,), generator=generator)
        outputs = torch.randn(inputs, int(lengths.max()), 6, generator=generator)
        stats.update(outputs, torch.arange(outputs.shape[1]) < lengths[:, None])
        rows += [row[:n] for row, n in zip(outputs, lengths.tolist(), strict=True)]
    overall = torch.cat(rows).mean(0)
    assert_close(stats.mean()[0, -1].flatten(), overall)
    assert_close(stats.std().flatten(), (torch.cat(rows) - overall).square().mean(0).view(2, 3).mean(-1).sqrt())
    if positional:
        longest = max(map(len, rows))
        by_position = [torch.stack([row[t] for row in rows if len(row) > t]).mean(0) for t in range(longest)]
        assert_close(stats.mean()[0].flatten(1), torch.stack([*by_position, overall]))


# --- evaluate.py ------------------------------------------------------------------------------------------------------


def run_evaluate(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = evaluate(list(args))
    output = capsys.readouterr()
    return code, output.out, output.err


def test_a_mask_can_be_evaluated_under_several_ablations(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Printed as one table. Values that the file lacks are computed on the training texts of its run."""
    mask, out = str(run.folder / "mask.safetensors"), str(tmp_path / "out")
    names = ["zero", "mean", "mean-positional", "resample", "learned"]
    code, printed, _ = run_evaluate("--mask", mask, "--ablation", json.dumps(names), "--out", out, capsys=capsys)
    assert code == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [one["ablation"] for one in found] == names
    lines = printed.splitlines()
    (header,) = [i for i, line in enumerate(lines) if "learned under" in line]
    assert lines[header].split() == ["mask", "learned", "under", "s", *names]
    for line, size in zip(lines[header + 1 : header + 4], (4, 18, 30), strict=True):
        row = [next(row["kl"] for row in one["sizes"] if row["s"] == size) for one in found]
        assert line.lstrip().startswith(mask) and line.split()[-7:-5] == ["zero", str(size)]
        assert [float(cell) for cell in line.split()[-5:]] == pytest.approx(row, abs=6e-4)
    expected = [row["kl"] for row in run.metrics["sizes"]]
    assert [row["kl"] for row in found[0]["sizes"]] == pytest.approx(expected, abs=1e-5)
    kl = torch.tensor([[row["kl"] for row in one["sizes"]] for one in found])
    assert kl.unique().numel() == kl.numel()

    masked_lm, data = MaskedLM(ml.load_lm()), ml.MaskData(task="names", positions="last", limit=24)
    data.setup()
    masked_lm.ablation = masked_lm.mean_ablation((b.input_ids, b.real) for b in data.loader("train"))
    mean_kl = MaskScorer(masked_lm, data.loader("test"))(ml.Mask.load(mask).mask.transpose(0, 1))[:, 0]
    assert_close(kl[1], mean_kl, atol=1e-4, rtol=1e-4)


def test_baselines_under_several_ablations_are_shown_or_not_computed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One table has the masks alone; those with baselines are printed if any are asked for."""
    named, measure = list[list[str]](), evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **how: (named.append(list(a[3])), measure(*a, **how))[1])
    command = ["--mask", str(run.folder), "--ablation", "[zero, mean]"]
    for flags in ([], ["--baselines", "[inverse]"]):
        code, printed, _ = run_evaluate(*command, *flags, capsys=capsys)
        assert code == 0 and printed.count("inverse KL") == len(flags)
    assert named == [[], [], ["inverse"], ["inverse"]]


def test_a_kl_that_is_not_finite_is_a_dash_in_the_table_of_ablations() -> None:
    kls = {"zero": None, "mean": 1.5}
    results = [{"mask": "m", "ablation": name, "sizes": [{"s": 4, "kl": kl}]} for name, kl in kls.items()]
    (_, row) = _ablation_table(results, {"m": "zero"}).splitlines()
    assert row.split()[-2:] == ["-", "1.500"]


def test_ablation_values_that_cannot_be_computed_are_a_user_error(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = ml.Mask.load(run.folder / "mask.safetensors")
    no_config, no_data = str(tmp_path / "no_config.safetensors"), str(tmp_path / "no_data.safetensors")
    replace(mask, config={}).save(no_config)
    replace(mask, config={"data": {"path": "nowhere.jsonl"}}).save(no_data)
    task = ["--data.task", "names", "--data.limit", "20"]
    code, _, message = run_evaluate("--mask", no_config, *task, "--ablation", "mean", capsys=capsys)
    assert code == 2 and message.count("\n") == 1
    assert "has no values for mean ablation, and does not say what it was learned on" in message
    code, _, message = run_evaluate("--mask", no_data, *task, "--ablation", "[zero, learned]", capsys=capsys)
    assert code == 2 and "there is no file nowhere.jsonl" in message and "values for learned ablation" in message
    code, printed, _ = run_evaluate("--mask", no_config, *task, "--ablation", "resample", capsys=capsys)
    assert code == 0 and "resample ablation" in printed
    code, _, message = run_evaluate("--mask", no_config, *task, "--ablation", "mean_positional", capsys=capsys)
    assert code == 2 and "mean-positional" in message


def test_a_non_finite_mean_is_a_user_error_that_names_the_nodes() -> None:
    heads, mlps = ([ActivationStats(n_nodes, False) for _ in range(2)] for n_nodes in (3, 1))
    for stats in (*heads, *mlps):
        stats.update(torch.ones(1, 4, 6), torch.ones(1, 4, dtype=torch.bool))
    ablation_from_means("mean", heads, mlps)
    mlps[1].update(torch.full((1, 4, 6), torch.inf), torch.ones(1, 4, dtype=torch.bool))
    assert "the mean of the MLP of layer 1 is not finite" in refused(lambda: ablation_from_means("mean", heads, mlps))


def test_a_mean_over_padding_only_is_an_error() -> None:
    stats = ActivationStats(1, False)
    stats.update(torch.ones(1, 4, 6), torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no tokens"):
        stats.mean()
