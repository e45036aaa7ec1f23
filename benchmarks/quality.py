"""How near masks learned at default settings come to the best subgraphs known, beside other ways to choose them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, get_args

import torch
from jsonargparse import auto_cli
from pandas import DataFrame
from setting import Setting, quiet_trainer
from timing import machine, now, report
from torch import Tensor

import masklearn as ml
from masklearn.ablation import AblationName
from masklearn.data import MaskData
from masklearn.data.datamodule import SplitName
from masklearn.data.sources import TaskName
from masklearn.selection.baselines import Baseline, Score, subgraphs
from masklearn.selection.scorer import MaskScorer
from masklearn.tiny import language as lang
from masklearn.tiny import tasks as generator
from masklearn.tiny.train import Family, train

SIZES = (3, 5, 9, 15, 22, 30, 38)
CHEAP: tuple[Baseline, ...] = ("random", "random-matched", *get_args(Score))
"""Baselines that cost less than greedy elimination."""
SMALL: tuple[tuple[Family, int, int], ...] = (("llama", 2, 6), ("gpt2", 3, 4))
"""Models of up to 16 nodes: architecture, layers, heads."""
TASKS: tuple[TaskName, ...] = ("mixed", "names", "agreement", "years", "copy")
SMALL_ABLATIONS: tuple[AblationName, ...] = ("zero", "mean")
Rows = list[dict[str, Any]]


@dataclass
class Run:
    """A learned bank, what it was learned on, and how long that took."""

    data: MaskData
    learner: ml.MaskLearner
    mask: ml.Mask
    seconds: float

    @property
    def masks(self) -> Tensor:
        """Shape (sizes, groups, nodes)."""
        return self.mask.mask.transpose(0, 1).to(self.learner.masked_lm.device)

    def scorer(self, part: SplitName, most: int | None = None) -> MaskScorer:
        groups = range(len(self.mask.groups))
        return MaskScorer(self.learner.masked_lm, self.data.loader(part, groups, max_texts=most), groups)

    def others(self, name: Baseline, scorer: MaskScorer) -> tuple[Tensor, float]:
        """Subgraphs chosen in another way, shape (draws, sizes, groups, nodes), and the seconds that took."""
        began = now()
        return subgraphs(name, self.mask, scorer).to(scorer.device), now() - began


def learned(setting: Setting, model: dict[str, Any], **data: Any) -> Run:
    """A bank learned at default settings but for those named."""
    trainer = quiet_trainer()
    texts = setting.data(scope=model.get("scope", "dataset"), **data)
    texts.setup("fit")
    learner = ml.MaskLearner(setting.lm, **model)
    learner.load()
    began = now()
    trainer.fit(learner, datamodule=texts)
    return Run(texts, learner, learner.discretize(), now() - began)


def judged(scorer: MaskScorer, masks: Tensor) -> Tensor:
    """KL of masks with or without draws, shape (draws, sizes, groups)."""
    return torch.stack([scorer(some) for some in (masks if masks.ndim == 4 else masks[None])])


def over_cheaper(run: Run, scorer: MaskScorer) -> list[float]:
    """KL of a bank over the lowest that cheap baselines come to, at each size, as the judge sees both."""
    cheaper = torch.tensor([mean_kl(scorer, run.others(name, scorer)[0]) for name in CHEAP])
    return (torch.tensor(mean_kl(scorer, run.masks)) / cheaper.min(0).values).tolist()


def mean_kl(scorer: MaskScorer, masks: Tensor) -> list[float]:
    """Mean over groups, and over draws where there are any, at each size."""
    return judged(scorer, masks).mean((0, 2)).tolist()


def small(folder: Path, texts: int) -> Rows:
    """Every size of small models against the best of all subgraphs, on the texts by which masks are selected."""
    rows: Rows = []
    for family, layers, heads in SMALL:
        lm = folder / f"{family}-{layers}x{heads}"
        if not lm.is_dir():
            train(lm, family, layers, heads, width=48, steps=1000)
        for ablation in SMALL_ABLATIONS:
            n_nodes = layers * (heads + 1)
            sizes = list(range(1, n_nodes))
            run = learned(Setting(str(lm), task="mixed"), {"sizes": sizes, "ablation": ablation}, limit=texts)
            scorer = run.scorer("selection")
            best, seconds = run.others("exhaustive", scorer)
            ratios = [a / b for a, b in zip(mean_kl(scorer, run.masks), mean_kl(scorer, best[0]), strict=True)]
            rows.append(
                {"model": lm.name, "ablation": ablation, "nodes": n_nodes, "median": median(ratios)}
                | {"worst": max(ratios), "at s": sizes[ratios.index(max(ratios))]}
                | {"worst over cheaper": max(over_cheaper(run, scorer))}
                | {"seconds": run.seconds, "exhaustive seconds": seconds, "ratios": ratios}
            )
    return rows


def beside(run: Run, rivals: Sequence[Baseline], select: MaskScorer, format_report: MaskScorer) -> Rows:
    """KL of a bank and of rivals that choose by one judge, as another judge sees them; ratios are to the rivals'.

    `no worse` is the share of groups on which the learned mask's KL is that of the rival's or lower.
    """
    own = judged(format_report, run.masks)
    rows: Rows = [{"masks": "learned", "seconds": run.seconds, "KL": own.mean((0, 2)).tolist()}]
    for name in rivals:
        masks, seconds = run.others(name, select)
        his = judged(format_report, masks)
        rows.append(
            {"masks": name, "seconds": seconds, "time learned / time": run.seconds / seconds}
            | {"KL": his.mean((0, 2)).tolist(), "KL learned / KL": (own.mean((0, 2)) / his.mean((0, 2))).tolist()}
            | {"no worse": (own <= his * 1.0001).float().mean((0, 2)).tolist()}
        )
    return rows


def dataset(setting: Setting, texts: int) -> Rows:
    """One bank for all texts, on held-out text, beside rivals that choose on the same texts as polish does."""
    run = learned(setting, {"sizes": SIZES}, limit=texts, positions="all")
    rivals: tuple[Baseline, ...] = (*CHEAP, "greedy", "swap")
    return beside(run, rivals, run.scorer("selection"), run.scorer("test"))


def inputs(setting: Setting, texts: int, sizes: Sequence[int] | str, max_length: int) -> Rows:
    """A bank for every text, judged on that text, last token; time and KL beside other ways to choose."""
    model = {"sizes": sizes, "scope": "input"}
    run = learned(setting, model, limit=texts, positions="last", max_length=max_length)
    scorer = run.scorer("all")
    return beside(run, (*CHEAP, "greedy"), scorer, scorer)


def tasks(texts: int) -> Rows:
    """The embedded model on every task under every ablation, beside swap search on the same texts; held-out KL."""
    rows: Rows = []
    for task in TASKS:
        for ablation in get_args(AblationName):
            positions = "all" if task == "mixed" else "last"
            run = learned(Setting("embedded", task=task), {"ablation": ablation}, limit=texts, positions=positions)
            select, held_out = run.scorer("selection"), run.scorer("test")
            best, seconds = run.others("swap", select)
            mine, theirs = mean_kl(select, run.masks), mean_kl(select, best)
            ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
            rows.append(
                {"task": task, "ablation": ablation, "median": median(ratios), "worst": max(ratios)}
                | {"over cheaper": over_cheaper(run, select)}
                | {"KL": mine, "swap KL": theirs, "ratios": ratios}
                | {"held-out KL": mean_kl(held_out, run.masks), "swap held-out KL": mean_kl(held_out, best)}
                | {"seconds": run.seconds, "swap seconds": seconds}
            )
            print(shown(rows[-1:]), flush=True)
    return rows


def splits(setting: Setting, texts: int) -> Rows:
    """What was learned on one split, on the others; and the stages between soft gates and discrete masks."""
    run = learned(setting, {"sizes": SIZES}, limit=texts, positions="all")
    parts: tuple[SplitName, ...] = ("train", "validation", "test")
    rows: Rows = [{"what": f"{part} texts", "KL": mean_kl(run.scorer(part), run.masks)} for part in parts]
    stages = run.learner.stages
    return rows + [{"what": name, "KL": [row[name] for row in stages]} for name in stages[0] if name != "s"]


def seeds(setting: Setting, texts: int, n: int) -> Rows:
    """How alike the masks of several seeds are."""
    runs = [learned(setting, {"sizes": SIZES, "seed": seed}, limit=texts, positions="all") for seed in range(n)]
    scorer = runs[0].scorer("test")
    kl = torch.tensor([mean_kl(scorer, run.masks) for run in runs])
    masks = torch.stack([run.mask.mask[0] for run in runs])  # (seeds, sizes, nodes)
    pairs = torch.combinations(torch.arange(n))
    first, second = masks[pairs[:, 0]], masks[pairs[:, 1]]
    overlap = (first & second).sum(-1) / (first | second).sum(-1)
    ranks = torch.stack([run.mask.scores[0, 0].argsort().argsort().double() for run in runs])
    correlation = torch.corrcoef(ranks)[pairs[:, 0], pairs[:, 1]]
    spread = kl.std(0) / kl.mean(0)
    return [
        {"s": s, "Jaccard": float(o.mean()), "KL": float(m), "KL spread": float(d), "ranks": float(correlation.mean())}
        for s, o, m, d in zip(SIZES, overlap.T, kl.mean(0), spread, strict=True)
    ]


def elsewhere(folder: Path, texts: int) -> Rows:
    """Masks of single prompts on the prompt itself and on others, beside what random ones do there; KL at six sizes.

    A prompt reworded has other words in every place that does not bear on the answer; its twin differs in the one word
    that does. Texts cut at random are held against themselves one token and five tokens later.
    """
    rows: Rows = []
    for task in ("names", "agreement", "years"):
        prompts = list(islice(generator.prompts(task), texts))
        clean = [prompt.text for prompt in prompts]
        others = {"reworded": [reworded(text) for text in clean], "its twin": [prompt.corrupted for prompt in prompts]}
        rows += moved(folder, task, clean, others | {"another of the task": clean[1:] + clean[:1]})
    rng, cuts = Random(0), list[list[str]]()
    written = (text.split() for text in generator.texts())
    for words in islice((words for words in written if len(words) > 8), texts):
        at = rng.randrange(2, len(words) - 5)
        cuts.append([" ".join(words[: at + more]) for more in (0, 1, 5)])
    now, one, five = (list(column) for column in zip(*cuts, strict=True))
    return rows + moved(folder, "mixed", now, {"one token later": one, "five tokens later": five})


def reworded(prompt: str) -> str:
    """The prompt with the next word of its kind in every place that does not bear on the answer."""
    idle = (lang.PLACES, lang.THINGS, lang.GAVE, lang.EVENTS, lang.CENTURIES, lang.ADJECTIVES, lang.PREPOSITIONS)
    follows = {word: words[(i + 1) % len(words)] for words in idle for i, word in enumerate(words)}
    return " ".join(follows.get(word, word) for word in prompt.split())


def moved(folder: Path, task: str, texts: Sequence[str], others: dict[str, list[str]]) -> Rows:
    """Masks learned on each of some texts, on that text and on others in its place."""

    def setting(name: str, some: Sequence[str]) -> Setting:
        path = folder / f"{task}-{name.replace(' ', '-')}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in some), encoding="utf-8")
        return Setting("embedded", str(path))

    run = learned(setting("itself", texts), {"sizes": "log:6", "scope": "input"}, positions="last")
    rows: Rows = []
    for name, some in {"itself": texts, **others}.items():
        data = setting(name, some).data(scope="input", positions="last")
        data.setup("fit")
        scorer = MaskScorer(run.learner.masked_lm, data.loader("all"), range(len(texts)))
        controls = subgraphs("random-matched", run.mask)
        rows.append(
            {"masks of": task, "on": name, "KL": mean_kl(scorer, run.masks), "random": mean_kl(scorer, controls)}
        )
    return rows


def shown(rows: Rows) -> str:
    """A table; what there is one of for each size stands in one cell, and ratios at many sizes only in the JSON."""

    def cell(value: Any) -> Any:
        if isinstance(value, list):
            return " ".join(f"{v:.3g}" for v in value)
        return f"{value:.3g}" if isinstance(value, float) else value

    cells = [{name: cell(value) for name, value in row.items() if name != "ratios"} for row in rows]
    return DataFrame(cells).to_string(index=False)


def main(
    parts: Sequence[str] = ("small", "dataset", "inputs", "tasks", "splits", "seeds", "elsewhere"),
    setting: Setting = Setting(),
    sizes: list[int] | str = SIZES,  # pyright: ignore[reportArgumentType]
    large: Setting | None = None,
    folder: Path = Path("runs/quality"),
    texts: int = 640,
    single_texts: int = 64,
    small_texts: int = 80,
    large_texts: int = 16,
    n_seeds: int = 5,
    out: Path | None = None,
) -> None:
    """Hold learned masks against the best subgraphs known.

    Args:
        parts: What to measure; `large` as well, where such a model is given.
        setting: A pretrained model and its texts.
        sizes: Nodes to keep, or log:12, in masks of single texts.
        large: A larger model and its texts, for masks of single texts.
        folder: Where small models are kept once trained, and prompts as files.
        texts: Texts of the runs with one bank for all.
        single_texts: Texts of the runs with a bank for each.
        small_texts: Texts of the runs on small models and on tasks.
        large_texts: Texts of the run on the larger model.
        n_seeds: Seeds whose masks are compared.
        out: JSON file to write.
    """
    measured: dict[str, partial[Rows]] = {
        "small": partial(small, folder, small_texts),
        "dataset": partial(dataset, setting, texts),
        "inputs": partial(inputs, setting, single_texts, sizes, max_length=128),
        "large": partial(inputs, large or setting, large_texts, sizes, max_length=24),
        "tasks": partial(tasks, 4 * small_texts),
        "splits": partial(splits, setting, texts),
        "seeds": partial(seeds, setting, texts, n_seeds),
        "elsewhere": partial(elsewhere, folder, single_texts),
    }
    print(machine())
    results: dict[str, Rows] = {}
    for part in parts:
        results[part] = measured[part]()
        print(f"\n{part}: {measured[part].func.__doc__}\n\n{shown(results[part])}", flush=True)
        report({"setting": str(setting)} | results, out)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
