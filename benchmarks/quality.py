"""KL of masks learned at default settings, compared with the best known subgraphs and with baselines."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from jsonargparse import auto_cli
from learned_bank import CHEAP_BASELINES, LearnedBank, Rows, kl_of, kl_over_cheap_baselines, learn_bank, mean_kl
from llm import LlmSettings, llm
from llm_shared import llm_shared
from pandas import DataFrame
from setting import Setting
from timing import machine, write_results
from transfer import transfer

from masklearn.ablation import AblationName
from masklearn.data.datamodule import SplitName
from masklearn.data.sources import TaskName
from masklearn.selection.baselines import Baseline
from masklearn.selection.scorer import MaskScorer
from masklearn.tiny.train import Family, train

SIZES = (3, 5, 9, 15, 22, 30, 38)
"""Sizes of the masks on the default model."""
SMALL_MODELS: tuple[tuple[Family, int, int], ...] = (("llama", 2, 6), ("gpt2", 3, 4))
"""Models of up to 16 nodes, few enough to try all subgraphs: architecture, layers, heads."""
TASKS: tuple[TaskName, ...] = ("mixed", "names", "agreement", "years", "copy")
"""Tasks of the embedded language to compare on."""
SMALL_ABLATIONS: tuple[AblationName, ...] = ("zero", "mean")
"""Ablations to compare under on small models."""


def small_models(folder: Path, texts: int) -> Rows:
    """Every size of small models, compared with the best of all subgraphs on the texts used for selection."""
    rows: Rows = []
    for family, layers, heads in SMALL_MODELS:
        lm = folder / f"{family}-{layers}x{heads}"
        if not lm.is_dir():
            train(lm, family, layers, heads, width=48, steps=1000)
        for ablation in SMALL_ABLATIONS:
            n_nodes = layers * (heads + 1)
            sizes = list(range(1, n_nodes))
            bank = learn_bank(Setting(str(lm), task="mixed"), {"sizes": sizes, "ablation": ablation}, limit=texts)
            scorer = bank.scorer("selection")
            best, seconds = bank.baseline("exhaustive", scorer)
            ratios = [a / b for a, b in zip(mean_kl(scorer, bank.masks), mean_kl(scorer, best[0]), strict=True)]
            rows.append(
                {"model": lm.name, "ablation": ablation, "nodes": n_nodes, "median": median(ratios)}
                | {"worst": max(ratios), "at s": sizes[ratios.index(max(ratios))]}
                | {"worst over cheaper": max(kl_over_cheap_baselines(bank, scorer))}
                | {"seconds": bank.seconds, "exhaustive seconds": seconds, "ratios": ratios}
            )
    return rows


def with_baselines(
    bank: LearnedBank, baselines: Sequence[Baseline], selection: MaskScorer, evaluation: MaskScorer
) -> Rows:
    """Compare the KL of a bank with that of baselines, which choose by one scorer and are evaluated by another.

    Ratios are learned over baseline. `no worse` is the share of groups on which the learned mask's KL is not higher.
    """
    learned_kl = kl_of(evaluation, bank.masks)
    mean_learned_kl = learned_kl.mean((0, 2))
    rows: Rows = [{"masks": "learned", "seconds": bank.seconds, "KL": mean_learned_kl.tolist()}]
    for name in baselines:
        masks, seconds = bank.baseline(name, selection)
        baseline_kl = kl_of(evaluation, masks)
        mean_baseline_kl = baseline_kl.mean((0, 2))
        rows.append(
            {"masks": name, "seconds": seconds, "time learned / time": bank.seconds / seconds}
            | {"KL": mean_baseline_kl.tolist(), "KL learned / KL": (mean_learned_kl / mean_baseline_kl).tolist()}
            | {"no worse": (learned_kl <= baseline_kl * 1.0001).float().mean((0, 2)).tolist()}
        )
    return rows


def dataset(setting: Setting, texts: int) -> Rows:
    """One bank for all texts, on held-out text, compared with baselines that choose on the same texts as polish."""
    bank = learn_bank(setting, {"sizes": SIZES}, limit=texts, positions="all")
    baselines: tuple[Baseline, ...] = (*CHEAP_BASELINES, "greedy", "swap")
    return with_baselines(bank, baselines, bank.scorer("selection"), bank.scorer("test"))


def inputs(setting: Setting, texts: int, sizes: Sequence[int | float] | str, max_length: int) -> Rows:
    """A bank for every text, evaluated on that text's last token; time and KL compared with baselines."""
    model = {"sizes": sizes, "scope": "input"}
    length = {"max_length": max_length, "truncation": "left"}
    bank = learn_bank(setting, model, limit=texts, positions="last", **length)
    scorer = bank.scorer("all")
    return with_baselines(bank, (*CHEAP_BASELINES, "greedy"), scorer, scorer)


def tasks(texts: int) -> Rows:
    """The embedded model on every task under every ablation, compared with swap search on the same texts."""
    rows: Rows = []
    for task in TASKS:
        for ablation in get_args(AblationName):
            positions = "all" if task == "mixed" else "last"
            bank = learn_bank(Setting("embedded", task=task), {"ablation": ablation}, limit=texts, positions=positions)
            selection, held_out = bank.scorer("selection"), bank.scorer("test")
            best, seconds = bank.baseline("swap", selection)
            learned_kl, swap_kl = mean_kl(selection, bank.masks), mean_kl(selection, best)
            ratios = [a / b for a, b in zip(learned_kl, swap_kl, strict=True)]
            rows.append(
                {"task": task, "ablation": ablation, "median": median(ratios), "worst": max(ratios)}
                | {"over cheaper": kl_over_cheap_baselines(bank, selection)}
                | {"KL": learned_kl, "swap KL": swap_kl, "ratios": ratios}
                | {"held-out KL": mean_kl(held_out, bank.masks), "swap held-out KL": mean_kl(held_out, best)}
                | {"seconds": bank.seconds, "swap seconds": seconds}
            )
            print(format_table(rows[-1:]), flush=True)
    return rows


def splits(setting: Setting, texts: int) -> Rows:
    """KL on every split, and KL of the stages from soft gates to polished masks."""
    bank = learn_bank(setting, {"sizes": SIZES}, limit=texts, positions="all")
    names: tuple[SplitName, ...] = ("train", "validation", "test")
    rows: Rows = [{"what": f"{name} texts", "KL": mean_kl(bank.scorer(name), bank.masks)} for name in names]
    stages = bank.learner.stages
    return rows + [{"what": name, "KL": [row[name] for row in stages]} for name in stages[0] if name != "s"]


def seeds(setting: Setting, texts: int, n: int) -> Rows:
    """Similarity of the masks of several seeds."""
    banks = [learn_bank(setting, {"sizes": SIZES, "seed": seed}, limit=texts, positions="all") for seed in range(n)]
    scorer = banks[0].scorer("test")
    kl = torch.tensor([mean_kl(scorer, bank.masks) for bank in banks])
    masks = torch.stack([bank.mask.mask[0] for bank in banks])  # (seeds, sizes, nodes)
    pairs = torch.combinations(torch.arange(n))
    first, second = masks[pairs[:, 0]], masks[pairs[:, 1]]
    overlap = (first & second).sum(-1) / (first | second).sum(-1)
    ranks = torch.stack([bank.mask.scores[0, 0].argsort().argsort().double() for bank in banks])
    correlation = torch.corrcoef(ranks)[pairs[:, 0], pairs[:, 1]]
    spread = kl.std(0) / kl.mean(0)
    return [
        {"s": s, "Jaccard": float(o.mean()), "KL": float(m), "KL spread": float(d), "ranks": float(correlation.mean())}
        for s, o, m, d in zip(SIZES, overlap.T, kl.mean(0), spread, strict=True)
    ]


def format_table(rows: Rows) -> str:
    """Format rows for printing: the values of all sizes share a cell, and the column `ratios` is left out."""

    def cell(value: Any) -> Any:
        if isinstance(value, list):
            return " ".join(f"{v:.3g}" for v in value)
        return f"{value:.3g}" if isinstance(value, float) else value

    cells = [{name: cell(value) for name, value in row.items() if name != "ratios"} for row in rows]
    return DataFrame(cells).to_string(index=False)


def main(
    parts: Sequence[str] = ("small", "dataset", "inputs", "tasks", "splits", "seeds", "elsewhere"),
    setting: Setting = Setting(),
    sizes: list[int | float] | str = SIZES,  # pyright: ignore[reportArgumentType]
    large: Setting | None = None,
    folder: Path = Path("runs/quality"),
    texts: int = 640,
    single_texts: int = 64,
    small_texts: int = 80,
    large_texts: int = 16,
    llm_settings: LlmSettings = LlmSettings(),
    n_seeds: int = 5,
    out: Path | None = None,
) -> None:
    """Compare learned masks with the best known subgraphs and with baselines.

    Args:
        parts: What to measure; add `large`, or with rivals `llm` or `llm_shared`, if there is a larger model.
        setting: A pretrained model and its texts.
        sizes: Sizes of masks of single texts, in nodes, or for example log:12.
        large: A larger model and its texts, for masks of single texts.
        folder: Folder for trained small models and for files of prompts.
        texts: Number of texts if they share one bank.
        single_texts: Number of texts if each has its own masks.
        small_texts: Number of texts for small models; tasks take four times as many.
        large_texts: Number of texts for the larger model.
        llm_settings: How `llm` and `llm_shared` measure.
        n_seeds: Seeds whose masks are compared.
        out: JSON file to write.
    """
    measured: dict[str, partial[Rows]] = {
        "small": partial(small_models, folder, small_texts),
        "dataset": partial(dataset, setting, texts),
        "inputs": partial(inputs, setting, single_texts, sizes, max_length=128),
        "large": partial(inputs, large or setting, large_texts, sizes, max_length=24),
        "llm": partial(llm, large or setting, large_texts, sizes, llm_settings),
        "llm_shared": partial(llm_shared, large or setting, large_texts, sizes, llm_settings),
        "tasks": partial(tasks, 4 * small_texts),
        "splits": partial(splits, setting, texts),
        "seeds": partial(seeds, setting, texts, n_seeds),
        "elsewhere": partial(transfer, folder, single_texts),
    }
    print(machine())
    results: dict[str, Rows] = {}
    for part in parts:
        results[part] = measured[part]()
        print(f"\n{part}: {measured[part].func.__doc__}\n\n{format_table(results[part])}", flush=True)
        write_results({"setting": str(setting)} | results, out)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
