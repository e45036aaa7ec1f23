"""Banks in the files of circuit tools: EAP-IG and MIB graphs, Edge-Pruning edges, and lists of nodes."""

import json
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedConfig

from masklearn.circuit_json import eap_circuit, edge_pruning_edges
from masklearn.errors import UserError
from masklearn.export.mib import mib_files, scores_input
from masklearn.files import atomic_write
from masklearn.mask_file import Mask

CircuitFormat = Literal["eap", "mib", "edge-pruning", "list"]
"""`eap`: a graph for EAP-IG, one file for each size. `mib`: importances or circuits for a submission. `edge-pruning`:
pairs of nodes. `list`: names of open nodes."""
ALWAYS_PARALLEL = {"codegen", "cohere", "cohere2", "cohere2_moe", "gptj", "phi"}
"""Families in which attention and MLP of a layer read the same stream."""
PARALLEL_SETTINGS = ("use_parallel_residual", "parallel_attn", "new_decoder_architecture")
"""Settings of other families that say so."""
LEARNED_POSITIONS = {"gpt2", "gpt_neo", "gpt_bigcode", "openai-gpt", "opt", "biogpt", "xglm"}
"""Families that add positions to their tokens."""


def to_circuits(
    mask: Mask,
    config: PreTrainedConfig,
    out: str | Path,
    form: CircuitFormat = "eap",
    s: int | float | None = None,
    group: str | int | None = None,
    with_input: bool | None = None,
) -> list[Path]:
    """Write masks as circuits, and return the files.

    Args:
        mask: The bank.
        config: The config of its model.
        out: The folder to write; it must not exist.
        form: The format.
        s: The only size to write; all sizes by default.
        group: The group to write, if there are several.
        with_input: For `mib`: whether the embedding counts as a node; by default if the bank's sizes are `mib-input`.

    Raises:
        UserError: If the folder exists, or if there is no such mask.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"{out} already exists and is kept. Choose another folder")
    sizes = mask.sizes.tolist() if s is None else [s]
    masks = {int(gates.sum()): gates for gates in (mask.select(size, group) for size in sizes)}
    if form == "mib":
        scores = {n: _scores(mask, n, group) for n in masks}
        width, parallel = config.get_text_config(decoder=True).hidden_size, reads_in_parallel(config)
        with_input = scores_input(mask) if with_input is None else with_input
        contents = mib_files(mask, masks, scores, width, parallel, with_input)
    else:
        contents = {f"circuit-{n}": _circuit(mask, gates, group, config, form) for n, gates in masks.items()}
    for name, content in contents.items():
        atomic_write(out / f"{name}.json", json.dumps(content).encode())
    return [out / f"{name}.json" for name in contents]


def reads_in_parallel(config: PreTrainedConfig) -> bool:
    """Whether attention and MLP of a layer read the same stream."""
    text = config.get_text_config(decoder=True)
    return text.model_type in ALWAYS_PARALLEL or any(getattr(text, name, False) for name in PARALLEL_SETTINGS)


def _circuit(mask: Mask, gates: Tensor, group: Any, config: PreTrainedConfig, form: CircuitFormat) -> Any:
    text, parallel = config.get_text_config(decoder=True), reads_in_parallel(config)
    if form == "list":
        return [name for name, is_open in zip(mask.graph.names, gates.tolist(), strict=True) if is_open]
    if form == "edge-pruning":
        n_kv_heads = getattr(text, "num_key_value_heads", None) or mask.graph.n_heads
        return edge_pruning_edges(mask.graph, gates, parallel, text.model_type in LEARNED_POSITIONS, n_kv_heads)
    return eap_circuit(mask.graph, gates, _scores(mask, int(gates.sum()), group), text.hidden_size, parallel)


def _scores(mask: Mask, s: int, group: Any) -> Tensor:
    """Scores of the nodes at a size, shape (nodes,)."""
    bank = mask[group or 0]
    return bank.scores[0, mask.sizes.tolist().index(s) if bank.scores.shape[1] > 1 else 0]
