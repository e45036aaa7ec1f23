"""Measure gates on every family. `python tests/family_table.py` prints the tables of docs/families.md."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import model_surgery
import torch
from families import FAMILIES, REFUSED, Family, build
from torch import Tensor

import masklearn as ml
from masklearn.masking import MaskedLM

MAX_LOGIT_ERROR = 1e-5
"""Allowed error of a logit in float32, relative to the largest logit: rounding differs between processors."""
GATE_STEP = 1e-3
"""Step of the central difference in a gate. It is large because parts of float64 models compute in float32."""


@dataclass(frozen=True)
class FamilyMeasurements:
    """How exact gates are on one family."""

    nodes: int
    logit_error: float
    """The largest difference of a gated logit from model surgery's, relative to the largest logit."""
    gradient_error: float
    """The largest difference of a gate's gradient from a central difference, relative to the largest slope."""
    min_gradient: float
    """The smallest gradient of a gate, relative to the largest slope."""


def random_texts(rows: int = 6) -> Tensor:
    """Make texts of seven tokens, longer than any sliding window of the small models: shape (rows, 7)."""
    return torch.randint(3, 64, (rows, 7), generator=torch.Generator().manual_seed(1))


def example_gates(graph: ml.NodeGraph) -> Tensor:
    """Make six gate vectors: two random masks, two soft ones, one without heads, one with a half-open head per layer.

    Returns:
        Shape (6, layers, heads + 1), the MLP last.
    """
    gates = torch.rand((6, graph.n_layers, graph.n_heads + 1), generator=torch.Generator().manual_seed(2))
    gates[:2] = gates[:2].round()
    gates[4:, :, :-1] = 0
    gates[5, :, 1] = 0.5
    return gates


def logit_error(family: Family) -> float:
    """Compare gated logits with model surgery: the largest difference, relative to the largest logit."""
    lm, input_ids = family.build(), random_texts()
    gates = example_gates(ml.NodeGraph.of(lm))
    with ml.gated(lm, gates.flatten(1)):
        found = lm(input_ids).logits
    return relative_error(found, model_surgery.logits(family, lm, input_ids, gates))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def gradients(family: Family, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate a log-probability in every gate: by autograd and by central differences.

    Args:
        family: The family.
        gates: Where to differentiate, shape (layers, heads + 1).

    Returns:
        Gradient and slope, both of that shape.
    """
    lm = family.build().to(family.finest_dtype)
    lm.set_experts_implementation("eager")  # the default one does not support float64
    masked_lm = MaskedLM(lm)
    input_ids, graph = random_texts(1), masked_lm.graph
    gates = gates.flatten().double().requires_grad_()

    def log_probability(rows: Tensor) -> Tensor:
        """Of token 7 after the text, under gates (rows, nodes)."""
        last = torch.zeros_like(input_ids, dtype=torch.bool)
        last[:, -1] = True
        hidden = masked_lm(input_ids, last, rows[:, None])
        return masked_lm.unembed(hidden).log_softmax(-1)[:, 0, 7]

    (gradient,) = torch.autograd.grad(log_probability(gates[None]).sum(), gates)
    steps = GATE_STEP * torch.eye(graph.n_nodes, dtype=torch.float64)
    with torch.no_grad():
        slope = (log_probability(gates + steps) - log_probability(gates - steps)) / (2 * GATE_STEP)
    return graph.by_layer(gradient), graph.by_layer(slope).to(gradient)


def measure(family: Family) -> FamilyMeasurements:
    """Measure one family, its gradients at the first soft gate vector."""
    graph = ml.NodeGraph.of(family.build())
    gradient, slope = gradients(family, example_gates(graph)[2])
    largest = slope.abs().max()
    return FamilyMeasurements(
        graph.n_nodes,
        logit_error(family),
        ((gradient - slope).abs().max() / largest).item(),
        (gradient.abs().min() / largest).item(),
    )


def measurement_table(families: Sequence[Family]) -> Iterator[str]:
    """Yield the lines of a Markdown table with the measurements of every family."""
    yield "| family | for example | nodes | logit error | gradient error | least gradient |"
    yield "|---|---|---|---|---|---|"
    for family in families:
        found = measure(family)
        errors = " | ".join(f"{v:.0e}" for v in (found.logit_error, found.gradient_error, found.min_gradient))
        yield f"| {family.name} | `{family.hub_id}` | {found.nodes} | {errors} |"


def refusal_table() -> Iterator[str]:
    """Yield the lines of a Markdown table with the error message of every refused model type."""
    yield "| type | what is said |"
    yield "|---|---|"
    for model_type, config, _ in REFUSED:
        try:
            MaskedLM(build(model_type, **config))
        except ml.UserError as error:
            yield f"| {model_type} | {error} |"


if __name__ == "__main__":
    for line in (*measurement_table(FAMILIES), "", *refusal_table()):
        print(line, flush=True)
