"""Masks of single texts beside greedy backward elimination: KL at every size, and time, in one run."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from setting import Setting, quiet_trainer
from timing import machine, now, report

import masklearn as ml
from masklearn.judge import Judge
from masklearn.search import greedy


def main(
    setting: Setting = Setting(),
    sizes: list[int | float] | str = (3, 5, 9, 15, 22, 30, 38),  # pyright: ignore[reportArgumentType]
    texts: int = 64,
    max_length: int = 128,
    out: Path | None = None,
) -> None:
    """Trace texts and hold the masks against greedy's.

    Args:
        setting: The model and its texts.
        sizes: Nodes to keep, or log:12.
        texts: How many texts to trace.
        max_length: Tokens after which a text is cut.
        out: JSON file to write.
    """
    data = setting.data(positions="last", scope="input", limit=texts, max_length=max_length)
    data.setup("fit")
    learner = ml.MaskLearner(setting.lm, sizes=sizes, scope="input")
    trainer = quiet_trainer()
    learner.load()
    began = now()
    trainer.fit(learner, datamodule=data)
    mask = learner.discretize()
    ours = now() - began
    judge = Judge(learner.masked_lm, data.loader("all"), range(texts))
    learned = judge(mask.mask.transpose(0, 1).to(learner.masked_lm.device))
    began = now()
    masks = greedy(judge, learner.sizes, learner.graph.n_nodes)
    theirs = now() - began
    rival = judge(masks)
    print(f"{machine()}\n{setting}: {texts} texts, {learner.graph.n_nodes} nodes, last position\n")
    print(f"{'s':>4} {'KL':>9} {'greedy':>9} {'ratio':>6} {'no worse':>9}")
    rows: list[dict[str, Any]] = []
    for s, mine, his in zip(learner.sizes, learned, rival, strict=True):
        row = {"s": s, "kl": float(mine.mean()), "greedy": float(his.mean())}
        row |= {"ratio": row["kl"] / row["greedy"], "no_worse": float((mine <= his * 1.0001).float().mean())}
        rows.append(row)
        print(f"{s:>4} {row['kl']:>9.2g} {row['greedy']:>9.2g} {row['ratio']:>6.2f} {row['no_worse']:>9.0%}")
    print(f"\n{ours:.1f} s over greedy's {theirs:.1f} s: {ours / theirs:.3f}; {60 * texts / ours:.0f} texts a minute")
    report({"setting": str(setting), "sizes": rows, "seconds": ours, "greedy_seconds": theirs}, out)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
