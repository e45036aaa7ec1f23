"""The flags of `python evaluate.py`."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from masklearn.ablation import AblationName
from masklearn.data import SplitName
from masklearn.errors import UserError
from masklearn.evaluation import EdgeMode
from masklearn.mask_file import Mask, mask_path
from masklearn.models import DTypeName
from masklearn.selection.baselines import CONTROLS, UNGUIDED, Baseline
from masklearn.text_bank import EdgeBank, TextBank

NODE_FLAGS = ("baselines", "baseline_texts", "part")
"""Flags that banks of single texts do not follow."""
STUDY_BASELINES: tuple[Baseline, ...] = (*CONTROLS, "norm", "inverse")
"""Baselines that a study needs."""


class EvaluateFlags:
    """Mask files to evaluate, and the texts, ablations and baselines to evaluate them with.

    Args:
        mask: Mask file, or the folder of a run; may be several, in a row or each with its own --mask.
        lm: Model to evaluate on, if it has moved since the masks were learned.
        dtype: Precision of the weights; that of the mask's run by default.
        device_map: Spreads the layers over devices, see train.py --help; as in the mask's run by default. Weights that
            the run has quantised are quantised here, too.
        devices: Devices that share the work, each with the whole model and a process of its own; on a CPU, processes.
        num_nodes: Machines with as many devices each, see docs/devices.md.
        part: Split to evaluate on: test, validation, train, selection (texts that masks were selected on) or all. By
            default the test split of the mask's own data, and all texts of other data.
        ablation: What closed nodes emit: zero, mean, mean-positional, resample or learned; or a list of them, for one
            table. That of the mask's run by default. Values that the mask file lacks are computed on the training
            texts of the mask's run.
        baselines: Other methods of choosing subgraphs of the same sizes, to compare with: random, random-matched (as
            many heads and MLPs), inverse (all other nodes), norm, attribution, integrated-gradients, single-ablation,
            greedy, greedy-forward, swap, exhaustive (up to 20 nodes). random and random-matched by default. Methods
            that need texts use the training texts of the mask's run. Searches take long: greedy evaluates every text
            about n_nodes^2 / 2 times.
        edges: For edge banks: recomputed (attention patterns and norms are those of the masked stream), or frozen (they
            are the full model's, so that the contributions into a vertex add up); or a list of both, for one study.
        keep_residual: For edge banks: keep all residual edges in random and inverse subgraphs, as the paper does.
        baseline_texts: Texts of every group that baselines use, at most.
        altered_column: For masks of single texts: evaluate them also on the text of this column in the same row, for
            example corrupted. In a study it is one more bank.
        study: Make the study of computation density of these masks: tables, figures and report.html in --out. By
            default if all are masks of single texts (scope input). What it measures of every bank is kept in a folder
            evaluated beside the mask file, so that another study, or one that was stopped, need not measure it again.
        evidence: Gather evidence on shared masks instead of evaluating them: hypothesis tests, controls, stability
            under rediscovery, completeness and transfer, see the flags --plan. It goes to a folder evidence beside the
            mask file, or to --out. Several runs are crossed: the masks of each on the texts of each. A command that was
            stopped goes on if it is started again.
        seed: Seed of the study's bootstrap resamples and permutations.
        track: Log the study, or the evidence, to Weights & Biases.
        out: Folder to write metrics.json to; by default runs/study-<time> for a study, and none otherwise.
        allow_pickle: Also read weights that are not safetensors; such a file can run code when it is read.
        trust_remote_code: Run the Python files that come with the model. Never taken from a mask file.

    Raises:
        UserError: If `baseline_texts`, `devices` or `num_nodes` is below 1.
    """

    def __init__(
        self,
        mask: list[str],
        lm: str | None = None,
        dtype: DTypeName | None = None,
        device_map: str | None = None,
        devices: int = 1,
        num_nodes: int = 1,
        part: SplitName | None = None,
        ablation: AblationName | list[AblationName] | None = None,
        baselines: list[Baseline] | None = None,
        edges: EdgeMode | list[EdgeMode] = "recomputed",
        keep_residual: bool = False,
        baseline_texts: int = 64,
        altered_column: str | None = None,
        study: bool | None = None,
        evidence: bool = False,
        seed: int = 0,
        track: bool = True,
        out: str | None = None,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.mask, self.lm = [str(mask_path(path)) for path in mask], lm
        self.out = out and str(Path(out).expanduser())
        self.trusted: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
        self.ablations: list[AblationName] | None = [ablation] if isinstance(ablation, str) else ablation
        self.study, self.evidence, self.seed, self.track = study, evidence, seed, track
        self.baselines: Sequence[Baseline] = CONTROLS if baselines is None else baselines
        self.are_baselines_given = baselines is not None
        self.baseline_texts, self.keep_residual = baseline_texts, keep_residual
        self.edges: list[EdgeMode] = [edges] if isinstance(edges, str) else edges
        self.altered_column = altered_column
        if baseline_texts < 1:
            raise UserError(f"baseline_texts is {baseline_texts}; it must be at least 1")
        if seed < 0:
            raise UserError(f"seed is {seed}; it must be at least 0: --seed 0")
        self.dtype: DTypeName | None = dtype
        self.part: SplitName | None = part
        self.device_map, self.devices, self.num_nodes = device_map, devices, num_nodes
        for flag, value in {"devices": devices, "num_nodes": num_nodes}.items():
            if value < 1:
                raise UserError(f"{flag} is {value}; it must be at least 1: --{flag} 1")

    @property
    def n_ranks(self) -> int:
        """Processes that share the work."""
        return self.devices * self.num_nodes

    @property
    def has_ablation_table(self) -> bool:
        """Whether one table shows the KL under several ablations."""
        return len(self.ablations or []) > 1

    def map_of(self, bank: Mask) -> str | None:
        """The device map to evaluate a bank with: the one given, or that of its run."""
        return self.device_map or bank.config.get("model", {}).get("device_map")

    def require_banks(self, masks: Sequence[Mask | TextBank], given: Collection[str]) -> None:
        """Refuse flags that no bank would follow.

        Args:
            masks: The masks to evaluate.
            given: Names of the flags that were given.

        Raises:
            UserError: The flag, and what it is for.
        """
        has_edges = any(isinstance(mask, EdgeBank) for mask in masks)
        if self.edges != ["recomputed"] and not has_edges:
            modes = " and ".join(self.edges)
            raise UserError(f"edges {modes} is for banks of edges, and none is given. Leave out --edges")
        if self.keep_residual and not has_edges:
            raise UserError("keep_residual is for banks of edges, and none is given. Leave out --keep_residual")
        unused = [flag for flag in NODE_FLAGS if flag in given]
        units = [mask.unit for mask in masks if isinstance(mask, TextBank)]
        if unused and len(units) == len(masks):
            raise UserError(
                f"{unused[0]} is for masks of nodes, and none is given: {units[0]} of single texts have controls "
                f"and texts of their own. Leave out --{unused[0]}"
            )

    def fill_defaults(self, masks: Sequence[Mask | TextBank], given: Collection[str]) -> None:
        """Decide whether there is a study, and if so, which baselines it needs and which folder it goes to.

        Args:
            masks: The masks to evaluate.
            given: Names of the flags that were given.

        Raises:
            UserError: If a flag is given that only a study follows, or only other baselines.
        """
        if self.study is None:
            self.study = all(mask.config.get("model", {}).get("scope") == "input" for mask in masks)
        if self.study:
            self.baselines = list(dict.fromkeys([*self.baselines, *STUDY_BASELINES]))
            self.out = self.out or str(Path("runs") / f"study-{time.strftime('%Y%m%d-%H%M%S')}")
        elif unused := [flag for flag in ("seed", "track") if flag in given and getattr(self, flag)]:
            raise UserError(f"{unused[0]} is for a study or for evidence. Add --study true, or leave out --{unused[0]}")
        elif self.has_ablation_table and not (self.are_baselines_given or self.out):
            self.baselines = ()  # nothing would show them
        if "baseline_texts" in given and set(self.baselines) <= set(UNGUIDED):
            raise UserError(
                f"baseline_texts is for baselines that choose by texts, unlike {', '.join(UNGUIDED)}. Name one with "
                "--baselines, such as norm, or leave out --baseline_texts"
            )
