"""Banks in the files of circuit tools: EAP-IG and MIB graphs, Edge-Pruning edges, and lists of nodes."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedConfig

from masklearn.circuit_json import eap_circuit, eap_importances, edge_pruning_edges
from masklearn.errors import UserError
from masklearn.files import atomic_write
from masklearn.mask_file import Mask

CircuitFormat = Literal["eap", "mib", "edge-pruning", "list"]
"""`eap`: a graph for EAP-IG, one file for each size. `mib`: importances or circuits for a submission. `edge-pruning`:
pairs of nodes. `list`: names of open nodes."""
ALWAYS_PARALLEL = {"codegen", "cohere", "cohere2", "gptj", "phi"}
"""Families in which attention and MLP of a layer read the same stream."""
PARALLEL_SETTINGS = ("use_parallel_residual", "parallel_attn")
"""Settings of other families that say so."""
LEARNED_POSITIONS = {"gpt2", "gpt_neo", "gpt_bigcode", "openai-gpt", "opt", "biogpt", "xglm"}
"""Families that add positions to their tokens."""
MIB_MAX_CIRCUITS = 9
"""Circuits of a submission that MIB reads."""


def to_circuits(
    mask: Mask,
    config: PreTrainedConfig,
    out: str | Path,
    form: CircuitFormat = "eap",
    s: int | float | None = None,
    group: str | int | None = None,
) -> list[Path]:
    """Write masks as circuits, and return the files.

    Args:
        mask: The bank.
        config: The config of its model.
        out: The folder to write; it must not exist.
        form: The format.
        s: The only size to write; all sizes by default.
        group: The group to write, if there are several.

    Raises:
        UserError: If the folder exists, or if there is no such mask.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"{out} already exists and is kept. Choose another folder")
    sizes = mask.sizes.tolist() if s is None else [s]
    masks = {int(gates.sum()): gates for gates in (mask.select(size, group) for size in sizes)}
    if form == "mib":
        contents = _mib(mask, masks, group, config)
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
        return edge_pruning_edges(mask.graph, gates, parallel, text.model_type in LEARNED_POSITIONS)
    bank = mask[group or 0]
    scores = bank.scores[0, mask.sizes.tolist().index(int(gates.sum())) if bank.scores.shape[1] > 1 else 0]
    return eap_circuit(mask.graph, gates, scores, text.hidden_size, parallel)


def _mib(mask: Mask, masks: dict[int, Tensor], group: Any, config: PreTrainedConfig) -> dict[str, Any]:
    """One file of importances if smaller masks lie inside larger ones; otherwise one file for each size.

    The importance of a node is the number of sizes that keep it, so that MIB's cuts fall between sizes.
    """
    text, parallel = config.get_text_config(decoder=True), reads_in_parallel(config)
    if all(not (small & ~large).any() for small, large in pairwise(masks.values())):
        kept_by = sum(gates.float() for gates in masks.values())
        assert isinstance(kept_by, Tensor)
        return {"importances": eap_importances(mask.graph, kept_by, text.hidden_size, parallel)}
    if len(masks) > MIB_MAX_CIRCUITS:
        raise UserError(
            f"the {len(masks)} masks do not lie inside each other, so MIB takes a file for each, but reads only "
            f"{MIB_MAX_CIRCUITS}. Learn fewer sizes, or a nested family with --model.polish 0"
        )
    return {f"circuit-{n:05}": _circuit(mask, gates, group, config, "eap") for n, gates in masks.items()}
