"""Banks as a submission to the MIB benchmark's circuit track: a folder for each task and model.

Its evaluator (mttk/MIB-circuit-track-autoeval) takes one file of importances, which it cuts at its own sizes, or nine
circuits, which it places at its sizes in the order of their numbers of edges.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from masklearn.circuit_json import INPUT, eap_circuit, eap_importances
from masklearn.errors import UserError
from masklearn.mask_file import Mask
from masklearn.sizes import MIB_INPUT_SERIES, mib_counts

TASKS = {
    "ioi": "ioi", "copycolors_mcqa": "mcqa", "arc_easy": "arc-easy", "arc_challenge": "arc-challenge",
    "arithmetic_addition": "arithmetic-addition", "arithmetic_subtraction": "arithmetic-subtraction",
}  # fmt: skip
"""Names of the tasks in a submission, by dataset."""
MODELS = {"gpt2": "gpt2", "Qwen2.5-0.5B": "qwen2.5", "gemma-2-2b": "gemma2", "Llama-3.1-8B": "llama3"}
"""Names of the models in a submission, by hub id without the owner."""
MAX_CIRCUITS = 9
"""Circuits of a folder that are read."""


def cell_of(mask: Mask) -> str | None:
    """The folder of a bank in a submission, such as `ioi_gpt2`; None if MIB has no such task or model."""
    dataset = mask.config.get("data", {}).get("dataset")
    task, model = (str(name).rsplit("/", 1)[-1] for name in (dataset, mask.model.lm))
    return f"{TASKS[task]}_{MODELS[model]}" if task in TASKS and model in MODELS else None


def scores_input(mask: Mask) -> bool:
    """Whether the bank's sizes leave room for the embedding as a node."""
    return mask.config.get("model", {}).get("sizes") == MIB_INPUT_SERIES


def mib_files(
    mask: Mask, masks: dict[int, Tensor], scores: dict[int, Tensor], width: int, parallel: bool, with_input: bool
) -> dict[str, Any]:
    """The files of one task and model, by name.

    If smaller masks lie inside larger ones, it is one file of importances: the number of sizes that keep a node, so
    that MIB's cuts fall between sizes, and less than one more by the order of the scores, for cuts at other sizes.
    Otherwise it is a circuit for each of MIB's sizes, or for each size if the bank's are others.

    Args:
        mask: The bank.
        masks: Boolean, shape (nodes,), by size; ascending.
        scores: Scores of the nodes, shape (nodes,), by size.
        width: Width of the residual stream.
        parallel: Whether attention and MLP of a layer read the same stream.
        with_input: Whether the embedding counts as a node. It is then the one that ranks first, as no other node sees
            the text without it.

    Raises:
        UserError: If there are more circuits than are read.
    """
    graph = mask.graph
    if all(not (small & ~large).any() for small, large in pairwise(masks.values())):
        kept_by = torch.stack([gates.float() for gates in masks.values()]).sum(0)
        kept_by += scores[max(scores)].argsort(stable=True).argsort() / graph.n_nodes
        input_score = len(masks) + 1.0 if with_input else None
        return {"importances": eap_importances(graph, kept_by, width, parallel, input_score)}
    counts = mib_counts(graph.n_nodes, with_input)[:-1]  # the evaluator adds the whole model
    if not {count for count in counts if count > 0} <= set(masks):
        counts = list(masks)
    if len(counts) > MAX_CIRCUITS:
        raise UserError(
            f"the {len(counts)} masks do not lie inside each other, so MIB takes a file for each, but reads only "
            f"{MAX_CIRCUITS}. Learn its own sizes (--model.sizes mib), or a nested family with --model.polish 0"
        )
    closed, zeros = torch.zeros(graph.n_nodes, dtype=torch.bool), torch.zeros(graph.n_nodes)
    files = dict[str, Any]()
    for index, count in enumerate(counts):
        circuit = eap_circuit(graph, masks.get(count, closed), scores.get(count, zeros), width, parallel)
        if count < 0:
            circuit["nodes"][INPUT]["in_graph"], circuit["edges"] = False, {}
        files[f"circuit-{index}-{max(count, 0):05}"] = circuit
    return files
