"""Learned ablation: which gates its constants learn from, and that polish, resuming and saving keep them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_learner import PLANTED, planted, trainer
from torch import Tensor
from torch.testing import assert_close

import masklearn as ml
from masklearn.ablation import Ablation
from masklearn.masking import CompiledSteps, MaskedLM, compiled
from masklearn.selection.scorer import MaskScorer
from masklearn.training import learned_ablation
from masklearn.training.learned_ablation import fit_ablation


def test_constants_get_gradients_from_closed_gates_only(
    masked_lm: MaskedLM, tokens: Tensor, everywhere: Tensor
) -> None:
    """The gradient of a closed node's constant is its central difference; that of a half-open node is zero."""
    closed = masked_lm.mean_ablation([(tokens, everywhere)])
    heads = tuple(v.clone().requires_grad_() for v in closed.heads)
    masked_lm.ablation = replace(closed, name="learned", heads=heads, trained_up_to=0.25)
    gates = torch.ones(1, 2, masked_lm.graph.n_nodes)
    gates[..., 0], gates[..., 1], gates[..., 2] = 0, 0.25, 0.5  # the third head of the first layer is half open

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


def test_compiled_steps_train_the_constants_that_eager_ones_train(
    masked_lm: MaskedLM, tokens: Tensor, everywhere: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With mean-field gates, those of nodes that are nearly closed."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    means = masked_lm.mean_ablation([(tokens, everywhere)])
    heads = tuple(value.clone().requires_grad_() for value in means.heads)
    masked_lm.ablation = Ablation("learned", heads, means.mlps, trained_up_to=0.5)
    gates = torch.rand(3, len(tokens), masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(0))
    steps = CompiledSteps(masked_lm)
    eager, found = (
        torch.autograd.grad(run(tokens, everywhere, gates).square().sum(), heads) for run in (masked_lm, steps)
    )
    assert all(gradient.any() for gradient in eager) and steps._passes and not steps.failed
    assert_close(found, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mean-positional", "resample", "learned"])
def test_a_planted_subgraph_is_recovered(tmp_path: Any, name: str) -> None:
    lm = planted(tmp_path / "lm")
    data = {"task": "names", "limit": 40, "batch_size": 4}
    learner = fitted(tmp_path, lm, data, sizes=[2, 4, 12], ablation=name, steps=60, polish=0)
    mask = learner.discretize()
    assert {n for n, keep in zip(mask.graph.names, mask.select(s=4), strict=True) if keep} == PLANTED
    assert mask.ablation.name == name and mask.ablation.known == (name != "resample")


@pytest.mark.parametrize(("scope", "gates"), [("input", None), ("dataset", "mean-field"), ("dataset", None)])
def test_constants_are_trained_along_with_every_kind_of_gate(tmp_path: Any, scope: str, gates: str | None) -> None:
    data = {"task": "names", "limit": 20, "scope": scope}
    settings = {"scope": scope, "gates": gates, "sizes": [9, 18], "steps": 20, "polish": 0}
    learner = fitted(tmp_path, "embedded", data, ablation="learned", **settings)
    assert learner.constants is not None
    assert max(float(shift.detach().abs().max()) for shift in learner.constants.parameters()) > 1e-3


def test_the_refit_sees_texts_from_the_whole_file_with_the_rows_of_a_step(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three texts of twenty in each step, one row of each: twice as many steps as with both sizes of a text."""
    monkeypatch.setattr(learned_ablation, "REFIT_STEPS", 2)
    assign, asked = learned_ablation.assign_masks, list[tuple[int, int]]()
    monkeypatch.setattr(learned_ablation, "assign_masks", lambda *a: asked.append((len(a[0]), a[2])) or assign(*a))
    data = {"task": "names", "limit": 40, "batch_size": 3}
    learner = fitted(tmp_path, "embedded", data, sizes=[9, 18], ablation="learned", steps=4, draws=1, polish=0)
    learner.discretize()
    assert asked == [(3, 1)] * 4
    loaded = ml.MaskData(**data)
    loaded.setup("fit")
    orders = [
        torch.cat([batch.text_index for batch in loaded.loader("train", shuffled=shuffled)]).tolist()
        for shuffled in (False, True, True)
    ]
    assert orders[0] == sorted(orders[1]) != orders[1] == orders[2]


def fitted(folder: Any, lm: str, data: dict[str, Any], **settings: Any) -> ml.MaskLearner:
    learner = ml.MaskLearner(lm, **settings)
    trainer(learner.schedule.steps, folder).fit(learner, datamodule=ml.MaskData(**data, lm=lm))
    return learner


def test_learned_constants_have_a_lower_kl_than_means_on_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On held-out texts. The constants are fitted to the discrete masks."""
    monkeypatch.setattr(learned_ablation, "REFIT_STEPS", 60)
    masked_lm, data = MaskedLM(ml.load_lm()), ml.MaskData(task="mixed", limit=60, batch_size=8)
    data.setup()
    masks = torch.rand(1, 2, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(3)) > 0.4
    kl = {}
    for name in ("mean", "learned"):
        masked_lm.ablation = fit_ablation(name, masked_lm, masks, data)
        assert masked_lm.ablation.name == name
        kl[name] = MaskScorer(masked_lm, data.loader("test"))(masks.transpose(0, 1)).mean()
    assert kl["learned"] < 0.9 * kl["mean"]


def test_masks_are_polished_under_the_constants_fitted_to_them(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the reported KL is that of the saved masks and constants."""
    monkeypatch.setattr(learned_ablation, "REFIT_STEPS", 10)
    data = {"task": "names", "limit": 6}
    learner = fitted(tmp_path, "embedded", data, steps=2, ablation="learned", polish=1, sizes=[2, 4])
    mask = learner.discretize()
    datamodule = ml.MaskData(**data, lm="embedded")
    datamodule.setup("fit")
    scorer = MaskScorer(learner.masked_lm, datamodule.loader("selection"))
    kl = scorer(mask.mask.transpose(0, 1))[:, 0]
    torch.testing.assert_close(kl, torch.tensor([stage["polished"] for stage in learner.stages]), rtol=1e-3, atol=1e-6)
    assert mask.mask.sum(-1).tolist() == [[2, 4]]


def test_a_killed_run_resumes_with_its_constants(tmp_path: Any) -> None:
    settings = {"steps": 6, "ablation": "learned", "polish": 0}
    data = {"task": "names", "limit": 40}
    uninterrupted = fitted(tmp_path / "uninterrupted", "embedded", data, **settings)
    killed = ml.MaskLearner(**settings)

    def kill(*_: object) -> None:
        if killed.global_step == 4:
            raise KeyError("killed")

    killed.on_train_batch_end = kill
    with pytest.raises(KeyError):
        trainer(6, tmp_path / "killed").fit(killed, datamodule=ml.MaskData(**data))
    resumed = ml.MaskLearner(**settings)
    last = tmp_path / "killed" / "last.ckpt"
    trainer(6, tmp_path / "killed").fit(resumed, datamodule=ml.MaskData(**data), ckpt_path=last, weights_only=True)
    assert resumed.constants is not None and uninterrupted.constants is not None
    for one, other in zip(resumed.constants.shifts, uninterrupted.constants.shifts, strict=True):
        assert torch.equal(one, other)
        assert one.any()
    for one, other in zip(resumed.masked_lm.ablation.heads, uninterrupted.constants().heads, strict=True):
        assert torch.equal(one, other)  # closed nodes emit the learned constants
