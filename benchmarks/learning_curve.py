"""Learning curves: KL against scored tokens, of soft gates, cut masks, and masks polished under growing budgets."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from learned_bank import LearnedBank, learn_bank
from lightning import Callback, Trainer
from matplotlib.axes import Axes
from setting import Setting
from timing import machine, read_results, write_results
from torch import Tensor

from masklearn.gates import open_probability, top
from masklearn.report.style import ShownFigure, styled
from masklearn.selection.polish import polish
from masklearn.selection.scorer import MaskScorer
from masklearn.training.cost import learning_tokens
from masklearn.training.learner import MaskLearner

MIN_KL = 1e-9
"""KL in nats that geometric means take as the least."""
SHARES_OF_POLISH = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
"""Budgets of polish that are tried, in shares of the default."""
POLISH_ROUNDS, POLISH_BUDGET = 4, 2.0
"""Rounds and budget of polish by default; it runs here after learning, in parts."""
STYLES = {"soft": "--", "cut": "-", "polished": ":"}
"""Lines of the stages."""


class Follow(Callback):
    """Scores soft gates and cut masks every few steps, on the texts that select masks."""

    def __init__(self, every: int) -> None:
        self.every, self.points = every, list[dict[str, Any]]()
        self._scorer: MaskScorer | None = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Score the masks of this step."""
        learner: MaskLearner = pl_module
        if trainer.global_step % self.every and trainer.global_step not in (1, 2, 5):
            return
        groups = range(learner.plan.n_groups)
        if self._scorer is None:
            data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]  (set at run time)
            self._scorer = MaskScorer(learner.masked_lm, data.loader("selection", groups), groups)
        log_odds = learner.budget.adjust_log_odds(
            learner.bank.log_odds.expand(-1, len(learner.sizes), -1), learner.size_counts
        )
        soft = open_probability(log_odds)[: len(groups)].transpose(0, 1)
        cut = learner.bank.discretize(learner.size_counts)[: len(groups)].transpose(0, 1)
        for stage, masks in (("soft", soft), ("cut", cut)):
            self.points.append({"stage": stage, "step": trainer.global_step, "KL": geometric_mean(self._scorer(masks))})


def geometric_mean(kl: Tensor) -> list[float]:
    """The geometric mean over groups, of KLs (sizes, groups)."""
    return kl.clamp_min(MIN_KL).log().mean(1).exp().tolist()


def polish_points(bank: LearnedBank, learning: float) -> list[dict[str, Any]]:
    """The KL of masks that are polished under growing budgets, each from the cut masks."""
    learner, scorer = bank.learner, bank.scorer("selection")
    cut = top(bank.mask.scores[:, 0], torch.tensor(learner.sizes)[:, None])
    scores = bank.mask.scores[:, 0].expand(len(learner.sizes), -1, -1)
    points = [{"stage": "polished", "tokens": learning, "KL": geometric_mean(scorer(cut))}]
    for share in SHARES_OF_POLISH:
        budget = share * POLISH_BUDGET * learning
        kl = polish(scorer, cut, scores, POLISH_ROUNDS, learner.settings.search_widths, budget=budget)[1]
        points.append({"stage": "polished", "tokens": learning + budget, "KL": geometric_mean(kl)})
        print("polished", share, *(f"{value:.3g}" for value in points[-1]["KL"]), flush=True)
    return points


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """Draw KL against scored tokens, a panel for each run."""
    with styled():
        figure = ShownFigure(figsize=(3.2 * len(results), 2.7), layout="constrained")
        for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
            _draw_panel(axes, result)
        figure.savefig(out, dpi=200)


def _draw_panel(axes: Axes, result: dict[str, Any]) -> None:
    for index, s in enumerate(result["sizes"]):
        for stage, style in STYLES.items():
            points = [(p["tokens"], p["KL"][index]) for p in result["points"] if p["stage"] == stage]
            x, y = zip(*points, strict=True)
            marker = "." if stage == "polished" else ""
            label = f"s={s}" if stage == "cut" else None
            axes.plot(x, y, style, marker=marker, color=f"C{index}", label=label, linewidth=1.3)
    axes.set(yscale="log", xlabel="scored tokens", ylabel="KL (nats)", title=result["title"])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axes.axvline(result["learning"], color="0.8", linewidth=0.8, zorder=0)
    axes.legend(
        fontsize="small", frameon=False, title="dashed: soft\nline: cut\ndots: polished", title_fontsize="x-small"
    )
    axes.spines[["top", "right"]].set_visible(False)


def main(
    setting: Setting = Setting(),
    scope: str = "dataset",
    sizes: tuple[float, ...] = (0.1, 0.3, 0.6),
    texts: int = 160,
    tokens: int = 64,
    steps: int | None = None,
    batch_size: int = 16,
    every: int = 10,
    beside: list[Path] | None = None,
    figure: Path | None = None,
    out: Path | None = None,
) -> None:
    """Follow a run from its first step to the end of polish, on the texts that select masks.

    Args:
        setting: Model and texts.
        scope: Scope of the masks, dataset or input.
        sizes: Sizes of the masks.
        texts: Texts; 0 only draws.
        tokens: Tokens of a text, at most.
        steps: Steps of learning; by default those of a run.
        batch_size: Texts of a step of shared masks.
        every: Steps between two points of a curve.
        beside: JSON files of earlier results, drawn before this one.
        figure: Image file to draw.
        out: JSON file to write.
    """
    print(machine())
    results = read_results(beside)
    if texts:
        follow = Follow(every)
        model = {"sizes": sizes, "scope": scope, "steps": steps, "polish": 0}
        model |= {"block": texts} if scope == "input" else {}  # one curve, so all of them in one block
        data = {"limit": texts, "max_length": tokens, "truncation": "left", "batch_size": batch_size}
        positions = "last" if scope == "input" else "all"
        bank = learn_bank(setting, model, callbacks=[follow], positions=positions, **data)
        learner = bank.learner
        groups = range(learner.plan.n_groups)
        learning = learning_tokens(bank.data, learner.plan, learner.settings.rows_per_text, groups)
        for point in follow.points:
            point["tokens"] = learning * point["step"] / learner.schedule.steps
        points = [*follow.points, *polish_points(bank, learning)]
        what = "one mask for all texts" if scope == "dataset" else f"masks of {len(groups)} single texts"
        title = f"{Path(setting.lm).name}\n{what}"
        results.append({"title": title, "sizes": learner.sizes, "learning": learning, "points": points})
        write_results(results[-1], out)
    if figure:
        draw(results, figure)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
