"""The settings of a `MaskLearner`: their checks, and the defaults that depend on other settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_type_hints

from masklearn.ablation import AblationName
from masklearn.choices import require_choices
from masklearn.errors import UserError
from masklearn.gates import GateName
from masklearn.masking import CompileMode
from masklearn.models import DTypeName, ModelOrName, QuantizationName, has_revisions
from masklearn.objective import ObjectiveName
from masklearn.selection.polish import LARGE_GRAPH_NODES, PER_INPUT, SHARED, SearchWidths
from masklearn.training.schedule import Schedule

FamilyName = Literal["nested", "independent"]
"""One score vector for every size, or gates of its own for each size."""
BudgetName = Literal["projected", "lagrangian"]
"""How the expected size is driven to its target, see `training.budget`."""
GraphName = Literal["nodes", "edges", "positions"]
"""Heads and MLPs of a model, the edges of every text's graph, or heads and MLPs at every token of a text."""
MethodName = Literal["learned", "s-trace"]
"""How subgraphs are found: by learning gates, or grown backward from the output by importance."""
METHODS: dict[GraphName, tuple[MethodName, ...]] = {
    "nodes": ("learned",),
    "edges": ("s-trace", "learned"),
    "positions": ("learned",),
}
"""The methods that exist for each graph."""
MAX_COUNT = 10**9
"""Largest value of a setting that counts something; it only excludes typing errors."""
SHARED_STEPS, SHARED_DRAWS = (300, 1200), (4, 1)
"""Steps, and draws per text and step, where texts share masks: of graphs below `LARGE_GRAPH_NODES`, and of others."""
PER_INPUT_STEPS, PER_INPUT_DRAWS = (80, 240), (1, 1)
"""The same where every text has its own masks, and polish finds more than further steps do."""
DEFAULT_LR: dict[GateName, float] = {"hard-concrete": 0.4, "mean-field": 0.8}
"""Learning rate of the log-odds by kind of gate."""


@dataclass(frozen=True)
class LearnerSettings:
    """The settings of a `MaskLearner`, which explains them. None stands for a default that depends on other settings.

    Raises:
        UserError: If a value is out of range, or family and budget do not go together.
    """

    lm: ModelOrName
    revision: str | None
    dtype: DTypeName
    allow_pickle: bool
    trust_remote_code: bool
    sizes: Sequence[int | float] | str
    scope: str
    max_groups: int | None
    ablation: AblationName
    family: FamilyName
    budget: BudgetName
    steps: int | None
    draws: int | None
    restarts: int
    block: int | None
    polish: int
    polish_budget: float | None
    gates: GateName | None
    lr: float | None
    temperature: tuple[float, float]
    compile: CompileMode
    seed: int
    sampled_kl_draws: int
    graph: GraphName = "nodes"
    method: MethodName = "learned"
    objective: ObjectiveName = "kl"
    device_map: str | None = None
    quantization: QuantizationName | None = None

    def __post_init__(self) -> None:
        require_choices("model", vars(self), get_type_hints(LearnerSettings))
        self._require_graph()
        for flag in ("steps", "draws", "restarts", "block", "polish", "max_groups", "sampled_kl_draws"):
            value, minimum = getattr(self, flag), 0 if flag == "polish" else 1
            if value is not None and not (isinstance(value, int) and minimum <= value <= MAX_COUNT):
                raise UserError(
                    f"model.{flag} is {value}; it must be at least {minimum} and at most {MAX_COUNT}, a whole number"
                )
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"model.lr is {self.lr}; it must be positive")
        if not isinstance(self.temperature, Sequence) or [0 < t < math.inf for t in self.temperature] != [True, True]:
            raise UserError(
                f"model.temperature is {self.temperature}; give two positive numbers, that of the first step and that "
                "of the last"
            )
        if self.polish_budget is not None and not 0 <= self.polish_budget < math.inf:
            raise UserError(
                f"model.polish_budget is {self.polish_budget}; give a multiple of what learning costs, 0 or more, for "
                "example 2, or null for no limit"
            )
        if self.budget == "lagrangian" and self.family == "nested":
            raise UserError(
                "model.budget lagrangian gives every size gates of its own. Add --model.family independent, "
                "or choose --model.budget projected"
            )

    def _require_graph(self) -> None:
        """Refuse a method that the graph does not have, and settings that a graph of one text cannot follow."""
        methods = METHODS[self.graph]
        if self.method not in methods:
            raise UserError(
                f"model.method is {self.method}, which does not exist for model.graph {self.graph}. "
                f"Choose --model.method {' or '.join(methods)}"
            )
        if self.graph == "nodes":
            return
        if self.scope != "input" or self.ablation != "zero":
            raise UserError(
                f"model.graph {self.graph} has a graph for every text, and what is closed emits zero, not scope "
                f"{self.scope} and ablation {self.ablation}. Choose --model.scope input --model.ablation zero"
            )
        if self.objective != "kl":
            raise UserError(
                f"model.graph {self.graph} has no objective but kl, not {self.objective}. Leave out --model.objective"
            )
        if self.device_map or self.quantization:
            raise UserError(
                f"model.graph {self.graph} reads whole weights on one device. Leave --model.device_map and "
                "--model.quantization out, and choose --model.dtype bfloat16 if memory is short"
            )

    def require_nodes(self) -> None:
        """Refuse edges and positions where masks are made of nodes.

        Raises:
            UserError: How to choose them.
        """
        if self.graph != "nodes":
            raise UserError(
                f"graph {self.graph} is not for a MaskLearner in Python. Choose {self.graph} with "
                f"python train.py --model.graph {self.graph}, or with masklearn.{self.graph}"
            )

    def require_revisions(self) -> None:
        """Refuse a revision of a model that has none; it would be ignored.

        Raises:
            UserError: Says so.
        """
        if self.revision is not None and isinstance(self.lm, str) and not has_revisions(self.lm):
            raise UserError(
                f"model.revision is {self.revision}, but {self.lm} is not on the hub, so it has no revisions. Leave "
                "--model.revision out, or give a hub id with --model.lm"
            )

    @property
    def by_kl(self) -> bool:
        """Whether masks minimise the KL from the full model, not a loss of answers."""
        return self.objective == "kl"

    @property
    def loss_name(self) -> str:
        """Name under which the objective is logged."""
        return "kl" if self.by_kl else "loss"

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of `load_lm` besides the model's name, revision and precision."""
        return {
            "allow_pickle": self.allow_pickle,
            "trust_remote_code": self.trust_remote_code,
            "device_map": self.device_map,
            "quantization": self.quantization,
        }

    @property
    def per_input(self) -> bool:
        """Whether every text has its own masks."""
        return self.scope == "input"

    @property
    def gate_kind(self) -> GateName:
        """The kind of gate: as given, or the default of the scope."""
        return self.gates or ("mean-field" if self.per_input else "hard-concrete")

    @property
    def learning_rate(self) -> float:
        """Learning rate of the log-odds: as given, or the default of the kind of gate."""
        return self.lr or DEFAULT_LR[self.gate_kind]

    @property
    def draws_per_text(self) -> int:
        """Gate vectors drawn for each text, restart and step: as given, or the default of the scope."""
        return self.draws or default_draws(self.per_input)

    @property
    def rows_per_text(self) -> int:
        """Rows of each text in a step."""
        return self.draws_per_text * self.restarts

    @property
    def search_widths(self) -> SearchWidths:
        """How widely polish searches."""
        return PER_INPUT if self.per_input else SHARED

    def schedule(self) -> Schedule:
        """The schedule of a block."""
        return Schedule(self.steps or default_steps(self.per_input), self.temperature)

    def of_graph(self, n_nodes: int) -> "LearnerSettings":
        """The same with the defaults of a model of `n_nodes` nodes for steps and draws that are not given."""
        steps = self.steps or default_steps(self.per_input, n_nodes)
        return replace(self, steps=steps, draws=self.draws or default_draws(self.per_input, n_nodes))


def default_steps(per_input: bool, n_nodes: int = 0) -> int:
    """Steps of a block by default."""
    return (PER_INPUT_STEPS if per_input else SHARED_STEPS)[n_nodes >= LARGE_GRAPH_NODES]


def default_draws(per_input: bool, n_nodes: int = 0) -> int:
    """Draws for each text and step by default."""
    return (PER_INPUT_DRAWS if per_input else SHARED_DRAWS)[n_nodes >= LARGE_GRAPH_NODES]
