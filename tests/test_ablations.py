"""What closed nodes emit: every ablation in every family, against the model taken apart."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import taken_apart
import torch
from conftest import Run, refused, tiny_gpt2, tiny_llama
from families import BY_NAME, FAMILIES, Family
from hypothesis import given
from hypothesis import strategies as st
from measured import LOGIT_ERROR, error, some_gates, texts
from test_learner import PLANTED, planted, trainer
from torch import Tensor
from torch.testing import assert_close

import masklearn as ml
from masklearn.ablation import at_positions
from masklearn.cli import evaluate
from masklearn.masking import MaskedLM
from masklearn.masking.activation_stats import ActivationStats, means_of
from masklearn.selection.scorer import MaskScorer
from masklearn.training import learned_ablation
from masklearn.training.learned_ablation import fit_ablation

ROWS = 4
LENGTHS = torch.tensor([7, 4, 6, 4])


def batch() -> tuple[Tensor, Tensor]:
    """Texts of unequal length, and where they are real."""
    real = torch.arange(7) < LENGTHS[:, None]
    return texts(ROWS).masked_fill(~real, 0), real


def emitted(family: Family, lm: Any, name: str, others: Tensor) -> list[taken_apart.Closed]:
    """What the closed nodes of every text emit, by hand."""
    ids, real = batch()
    if name == "resample":
        return [taken_apart.outputs(family, lm, row) for row in others]
    seen = [taken_apart.outputs(family, lm, row[here]) for row, here in zip(ids, real, strict=True)]

    def mean(values: list[Tensor]) -> Tensor:
        overall = torch.cat(values, 1).mean(1, keepdim=True)  # (layers, 1, width)
        if name in ("mean", "learned"):
            return overall.expand(-1, 7, -1)
        at = [torch.stack([v[:, t] for v in values if v.shape[1] > t]).mean(0) for t in range(7)]
        return torch.stack(at, 1)

    heads, mlps = mean([s.heads for s in seen]), mean([s.mlps for s in seen])
    return [
        taken_apart.Closed(away(heads), away(mlps)) if name == "learned" else taken_apart.Closed(heads, mlps)
    ] * ROWS


def away(means: Tensor) -> Tensor:
    """What stands for learned constants: no means any more."""
    return 2 * means + 0.1


def ablation(masked_lm: MaskedLM, name: str, others: Tensor) -> ml.Ablation:
    if name == "resample":
        return masked_lm.resampled(others)
    ids, real = batch()
    found = masked_lm.mean_ablation([(ids[:1], real[:1]), (ids[1:, :6], real[1:, :6])], name == "mean-positional")
    if name == "learned":
        heads, mlps = (tuple(map(away, values)) for values in (found.heads, found.mlps))
        return ml.Ablation("learned", heads, mlps)
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_closed_nodes_emit_what_they_are_to(family: Family) -> None:
    lm = family.build()
    masked_lm, others = MaskedLM(lm), texts(2 * ROWS)[ROWS:]
    gates = some_gates(masked_lm.graph)[[0, 2, 4, 5]]
    names = ("mean", "mean-positional", "resample", "learned") if family in FAMILIES[:30] else ("resample",)
    for name in names:
        with ml.gated(lm, gates.flatten(1), ablation(masked_lm, name, others)):
            found = lm(texts(ROWS)).logits
        expected = taken_apart.logits(family, lm, texts(ROWS), gates, emitted(family, lm, name, others))
        assert error(found, expected) < LOGIT_ERROR, name


@pytest.mark.parametrize("name", ["mean", "mean-positional", "resample"])
@pytest.mark.parametrize("family", [BY_NAME[name] for name in ("gpt2", "opt", "falcon", "gemma2", "olmo2", "mixtral")],
                         ids=lambda family: family.name)  # fmt: skip
def test_every_gate_has_a_gradient_and_the_right_one(family: Family, name: str) -> None:
    lm = family.build().to(family.finest)
    lm.set_experts_implementation("eager")
    masked_lm = MaskedLM(lm)
    closed = ablation(masked_lm, name, texts(ROWS)[:1])
    text = texts(9)[8:]

    def probability(rows: Tensor) -> Tensor:
        with ml.gated(lm, rows, closed):
            return lm(text.expand(len(rows), -1)).logits[:, -1].log_softmax(-1)[:, 7]

    for start in (some_gates(masked_lm.graph)[2], torch.zeros(2, 5)):  # where all heads are closed as well
        gates = start.flatten().double().requires_grad_()
        (found,) = torch.autograd.grad(probability(gates[None]).sum(), gates)
        steps = 1e-3 * torch.eye(len(gates), dtype=torch.float64)
        with torch.no_grad():
            slope = (probability(gates + steps) - probability(gates - steps)) / 2e-3
        assert_close(found, slope.to(found), atol=1e-3 * slope.abs().max().item(), rtol=0)
        assert (found.abs() > 1e-5 * slope.abs().max()).all()


@pytest.mark.parametrize("lm", [tiny_llama(), tiny_gpt2()], ids=["llama", "gpt2"])
def test_rows_that_go_round_take_each_its_own_input(lm: Any, tokens: Tensor, everywhere: Tensor) -> None:
    """K gate vectors of every input, each resampled from the input's own corrupted text."""
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


def test_an_input_resampled_from_itself_is_left_as_it_is(masked_lm: MaskedLM, tokens: Tensor) -> None:
    with ml.gated(masked_lm.lm, torch.zeros(masked_lm.graph.n_nodes), masked_lm.resampled(tokens)):
        found = masked_lm.lm(tokens).logits
    assert_close(found, masked_lm.lm(tokens).logits, atol=1e-5, rtol=1e-5)


def test_open_gates_change_nothing_whatever_the_ablation(masked_lm: MaskedLM, tokens: Tensor) -> None:
    plain = masked_lm.lm(tokens).logits
    real = torch.ones_like(tokens, dtype=torch.bool)
    for closed in (masked_lm.resampled(tokens.flip(1)), masked_lm.mean_ablation([(tokens, real)], True)):
        with ml.gated(masked_lm.lm, torch.ones(masked_lm.graph.n_nodes), closed):
            assert torch.equal(masked_lm.lm(tokens).logits, plain)


def test_texts_longer_than_any_seen_go_on_with_the_mean() -> None:
    values = torch.arange(4.0).view(1, 4, 1, 1)  # three positions, and the mean of all
    assert at_positions(values, 2).flatten().tolist() == [0, 1]
    assert at_positions(values, 6).flatten().tolist() == [0, 1, 2, 3, 3, 3]
    assert at_positions(values[:, :1], 6).flatten().tolist() == [0]


@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99), positional=st.booleans())
def test_means_do_not_depend_on_how_texts_are_batched(cuts: list[int], seed: int, positional: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen, rows = ActivationStats(2, positional), []
    for inputs in cuts:
        lengths = torch.randint(1, 6, (inputs,), generator=generator)
        outputs = torch.randn(inputs, int(lengths.max()), 6, generator=generator)
        seen.update(outputs, torch.arange(outputs.shape[1]) < lengths[:, None])
        rows += [row[:n] for row, n in zip(outputs, lengths.tolist(), strict=True)]
    overall = torch.cat(rows).mean(0)
    assert_close(seen.mean()[0, -1].flatten(), overall)
    assert_close(seen.spread().flatten(), (torch.cat(rows) - overall).square().mean(0).view(2, 3).mean(-1).sqrt())
    if positional:
        longest = max(map(len, rows))
        at = [torch.stack([row[t] for row in rows if len(row) > t]).mean(0) for t in range(longest)]
        assert_close(seen.mean()[0].flatten(1), torch.stack([*at, overall]))


# --- learned constants ------------------------------------------------------------------------------------------------


def test_constants_learn_from_closed_gates_alone(masked_lm: MaskedLM, tokens: Tensor, everywhere: Tensor) -> None:
    """The gradient of a closed node's constant is the slope; that of a half-open one is nothing."""
    closed = masked_lm.mean_ablation([(tokens, everywhere)])
    heads = tuple(v.clone().requires_grad_() for v in closed.heads)
    masked_lm.ablation = replace(closed, name="learned", heads=heads)
    gates = torch.ones(1, 2, masked_lm.graph.n_nodes)
    gates[..., [0, 1]], gates[..., 2] = 0, 0.5  # the third head of the first layer is half open

    def loss() -> Tensor:
        return masked_lm.unembed(masked_lm(tokens, everywhere, gates)).log_softmax(-1)[..., 7].mean()

    found = torch.autograd.grad(loss(), heads[0])[0]
    assert not found[0, 0, 2:].any()
    assert found[0, 0, :2].all()
    with torch.no_grad():
        before = heads[0].clone()
        for head, i in ((0, 3), (1, 0)):
            slope = []
            for step in (0.01, -0.01):
                heads[0].copy_(before)
                heads[0][0, 0, head, i] += step
                slope.append(loss())
            assert_close((slope[0] - slope[1]) / 0.02, found[0, 0, head, i], atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("name", ["mean-positional", "resample", "learned"])
def test_the_planted_subgraph_is_found(tmp_path: Any, name: str) -> None:
    lm = planted(tmp_path / "lm")
    data = {"task": "names", "limit": 40, "batch_size": 8}
    learner = fitted(tmp_path, lm, data, sizes=[2, 4, 12], ablation=name, steps=60)
    mask = learner.discretize()
    assert {n for n, keep in zip(mask.graph.names, mask.select(s=4), strict=True) if keep} == PLANTED
    assert mask.ablation.name == name and mask.ablation.known == (name != "resample")


def fitted(folder: Any, lm: str, data: dict[str, Any], **settings: Any) -> ml.MaskLearner:
    learner = ml.MaskLearner(lm, **settings)
    trainer(learner.schedule.steps, folder).fit(learner, datamodule=ml.MaskData(**data, lm=lm))
    return learner


def test_learned_constants_beat_means_on_the_same_masks() -> None:
    """On texts that neither was found on; and they are refitted for masks that are cut."""
    masked_lm, data = MaskedLM(ml.load_lm()), ml.MaskData(task="mixed", limit=120, batch_size=8)
    data.setup()
    masks = torch.rand(1, 2, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(3)) > 0.4
    kl = {}
    for name in ("mean", "learned"):
        masked_lm.ablation = fit_ablation(name, masked_lm, masks, data)
        assert masked_lm.ablation.name == name
        kl[name] = MaskScorer(masked_lm, data.loader("test"))(masks.transpose(0, 1)).mean()
    assert kl["learned"] < 0.9 * kl["mean"]


def test_masks_are_polished_under_the_constants_that_were_fitted_to_them(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the KL that is told is that of the masks and constants that are kept."""
    monkeypatch.setattr(learned_ablation, "REFIT_STEPS", 10)
    data = {"task": "names", "limit": 12}
    learner = fitted(tmp_path, "embedded", data, steps=2, ablation="learned", polish=1, sizes=[2, 4])
    mask = learner.discretize()
    texts = ml.MaskData(**data, lm="embedded")
    texts.setup("fit")
    scorer = MaskScorer(learner.masked_lm, texts.loader("selection"))
    kl = scorer(mask.mask.transpose(0, 1))[:, 0]
    torch.testing.assert_close(kl, torch.tensor([stage["polished"] for stage in learner.stages]), rtol=1e-3, atol=1e-6)
    assert mask.mask.sum(-1).tolist() == [[2, 4]]


def test_a_killed_run_goes_on_with_the_constants_it_had(tmp_path: Any) -> None:
    settings = {"steps": 6, "ablation": "learned", "polish": 0}
    data = {"task": "names", "limit": 40}
    whole = fitted(tmp_path / "whole", "embedded", data, **settings)
    part = ml.MaskLearner(**settings)

    def kill(*_: object) -> None:
        if part.global_step == 4:
            raise KeyError("killed")

    part.on_train_batch_end = kill
    with pytest.raises(KeyError):
        trainer(6, tmp_path / "part").fit(part, datamodule=ml.MaskData(**data))
    resumed = ml.MaskLearner(**settings)
    last = tmp_path / "part" / "last.ckpt"
    trainer(6, tmp_path / "part").fit(resumed, datamodule=ml.MaskData(**data), ckpt_path=last, weights_only=True)
    assert resumed.constants is not None and whole.constants is not None
    for one, other in zip(resumed.constants.shifts, whole.constants.shifts, strict=True):
        assert torch.equal(one, other)
        assert one.any()
    for one, other in zip(resumed.ablation.heads, whole.constants().heads, strict=True):
        assert torch.equal(one, other)  # what closed nodes emit is what was learned


# --- at the door ------------------------------------------------------------------------------------------------------


def door(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = evaluate(list(args))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_mask_under_other_ablations_than_its_own(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One table; and what the file lacks is what a run under that ablation would have found on its training texts."""
    mask, out = str(run.folder / "mask.safetensors"), str(tmp_path / "out")
    names = ["zero", "mean", "mean-positional", "resample", "learned"]
    code, said, _ = door("--mask", mask, "--ablation", json.dumps(names), "--out", out, capsys=capsys)
    assert code == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [one["ablation"] for one in found] == names
    format_report = said.splitlines()
    (at,) = [i for i, line in enumerate(format_report) if "learned under" in line]
    assert format_report[at].split() == ["mask", "learned", "under", "s", *names]
    for line, size in zip(format_report[at + 1 : at + 4], (4, 18, 30), strict=True):
        row = [next(row["kl"] for row in one["sizes"] if row["s"] == size) for one in found]
        assert line.lstrip().startswith(mask) and line.split()[-7:-5] == ["zero", str(size)]
        assert [float(cell) for cell in line.split()[-5:]] == pytest.approx(row, abs=6e-4)
    own = [row["kl"] for row in run.metrics["sizes"]]
    assert [row["kl"] for row in found[0]["sizes"]] == pytest.approx(own, abs=1e-5)
    kl = torch.tensor([[row["kl"] for row in one["sizes"]] for one in found])
    assert kl.unique().numel() == kl.numel()

    masked_lm, data = MaskedLM(ml.load_lm()), ml.MaskData(task="names", positions="last", limit=60)
    data.setup()
    masked_lm.ablation = masked_lm.mean_ablation((b.input_ids, b.real) for b in data.loader("train"))
    judged = MaskScorer(masked_lm, data.loader("test"))(ml.Mask.load(mask).mask.transpose(0, 1))[:, 0]
    assert_close(kl[1], judged, atol=1e-4, rtol=1e-4)


def test_a_mask_that_lacks_values_and_cannot_find_them(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = ml.Mask.load(run.folder / "mask.safetensors")
    alone, gone = str(tmp_path / "alone.safetensors"), str(tmp_path / "gone.safetensors")
    replace(mask, config={}).save(alone)
    replace(mask, config={"data": {"path": "nowhere.jsonl"}}).save(gone)
    task = ["--data.task", "names", "--data.limit", "20"]
    code, _, said = door("--mask", alone, *task, "--ablation", "mean", capsys=capsys)
    assert code == 2 and said.count("\n") == 1
    assert "has no values for mean ablation, and does not say what it was learned on" in said
    code, _, said = door("--mask", gone, *task, "--ablation", "[zero, learned]", capsys=capsys)
    assert code == 2 and "there is no file nowhere.jsonl" in said and "values for learned ablation" in said
    code, said, _ = door("--mask", alone, *task, "--ablation", "resample", capsys=capsys)
    assert code == 0 and "under resample ablation" in said
    code, _, said = door("--mask", alone, *task, "--ablation", "mean_positional", capsys=capsys)
    assert code == 2 and "mean-positional" in said


def test_a_mean_that_is_not_finite_is_refused_and_named() -> None:
    heads, mlps = ([ActivationStats(parts, False) for _ in range(2)] for parts in (3, 1))
    for seen in (*heads, *mlps):
        seen.update(torch.ones(1, 4, 6), torch.ones(1, 4, dtype=torch.bool))
    means_of("mean", heads, mlps)
    mlps[1].update(torch.full((1, 4, 6), torch.inf), torch.ones(1, 4, dtype=torch.bool))
    assert "the mean of the MLP of layer 1 is not finite" in refused(lambda: means_of("mean", heads, mlps))


def test_a_mean_over_padding_alone_is_refused() -> None:
    seen = ActivationStats(1, False)
    seen.update(torch.ones(1, 4, 6), torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no tokens"):
        seen.mean()
