"""What is measured of every family: `python tests/measured.py` prints tables, families and what is refused."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import taken_apart
import torch
from families import FAMILIES, REFUSED, Family, build
from torch import Tensor

import masklearn as ml
from masklearn.masking import MaskedLM

LOGIT_ERROR = 1e-5
"""What a logit may be off by in float32, in parts of the largest: rounding differs between processors."""
STEP = 1e-3
"""Half the difference of two gates between which a slope is taken: parts of float64 models compute in float32."""


@dataclass(frozen=True)
class Measured:
    """How well the gates of a family do."""

    nodes: int
    logit_error: float
    """The largest difference of a logit under gates from that of the model taken apart, in parts of the largest."""
    gradient_error: float
    """The largest difference of a gate's gradient from a slope between two gates, relative to the largest slope."""
    least_gradient: float
    """The smallest gradient of a gate, relative to the largest slope."""


def texts(rows: int = 6) -> Tensor:
    """Texts of seven tokens: longer than any sliding window of the small models."""
    return torch.randint(3, 64, (rows, 7), generator=torch.Generator().manual_seed(1))


def some_gates(graph: ml.NodeGraph) -> Tensor:
    """Two random masks, two vectors between, one without a head, and one with a half-open head in each layer."""
    gates = torch.rand((6, graph.n_layers, graph.n_heads + 1), generator=torch.Generator().manual_seed(2))
    gates[:2] = gates[:2].round()
    gates[4:, :, :-1] = 0
    gates[5, :, 1] = 0.5
    return gates


def logit_error(family: Family) -> float:
    lm, input_ids = family.build(), texts()
    gates = some_gates(ml.NodeGraph.of(lm))
    with ml.gated(lm, gates.flatten(1)):
        found = lm(input_ids).logits
    return error(found, taken_apart.logits(family, lm, input_ids, gates))


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in parts of what is largest."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def gradients(family: Family, gates: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a log-probability in every gate (layers, heads + 1), and the slope between two gates about it."""
    lm = family.build().to(family.finest)
    lm.set_experts_implementation("eager")  # the usual one takes no float64
    masked_lm = MaskedLM(lm)
    input_ids, graph = texts(1), masked_lm.graph
    gates = gates.flatten().double().requires_grad_()

    def probability(rows: Tensor) -> Tensor:
        """Of some token after the text, under gates (rows, nodes)."""
        last = torch.zeros_like(input_ids, dtype=torch.bool)
        last[:, -1] = True
        hidden = masked_lm(input_ids, last, rows[:, None])
        return masked_lm.unembed(hidden).log_softmax(-1)[:, 0, 7]

    (found,) = torch.autograd.grad(probability(gates[None]).sum(), gates)
    steps = STEP * torch.eye(graph.n_nodes, dtype=torch.float64)
    with torch.no_grad():
        slope = (probability(gates + steps) - probability(gates - steps)) / (2 * STEP)
    return graph.by_layer(found), graph.by_layer(slope).to(found)


def measure(family: Family) -> Measured:
    graph = ml.NodeGraph.of(family.build())
    found, slope = gradients(family, some_gates(graph)[2])
    largest = slope.abs().max()
    return Measured(
        graph.n_nodes,
        logit_error(family),
        ((found - slope).abs().max() / largest).item(),
        (found.abs().min() / largest).item(),
    )


def table(families: Sequence[Family]) -> Iterator[str]:
    """Rows of Markdown: every family and what was measured of it."""
    yield "| family | for example | nodes | logit error | gradient error | least gradient |"
    yield "|---|---|---|---|---|---|"
    for family in families:
        it = measure(family)
        errors = " | ".join(f"{value:.0e}" for value in (it.logit_error, it.gradient_error, it.least_gradient))
        yield f"| {family.name} | `{family.hub_id}` | {it.nodes} | {errors} |"


def refusals() -> Iterator[str]:
    """Rows of Markdown: what is refused, and how it reads."""
    yield "| type | what is said |"
    yield "|---|---|"
    for model_type, config, _ in REFUSED:
        try:
            MaskedLM(build(model_type, **config))
        except ml.UserError as error:
            yield f"| {model_type} | {error} |"


if __name__ == "__main__":
    for line in (*table(FAMILIES), "", *refusals()):
        print(line, flush=True)
