"""The model card of an exported folder: what it is, what it costs and how to load it."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from masklearn.ablation import Ablation
from masklearn.export.measurement import N_DECODED, N_PREFILLS, Cost
from masklearn.hub import base_model, short_name
from masklearn.mask_file import Mask

CARD = """---
library_name: transformers
pipeline_tag: text-generation
{base_model}tags: [masklearn, pruned, circuit]
---

# {n_open} of {n_nodes} nodes of {model}

A subgraph: {heads} of {n_heads} attention heads and {mlps} of {n_mlps} MLPs.
{closed}{quality}

When this folder was written, its logits were compared with those of the masked model in float32, on whole texts and
token by token with a cache, in a batch padded on the left. They differ by at most {gap:.1g} of the largest.

```python
from transformers import {imports}

lm = AutoModelForCausalLM.from_pretrained("{folder}"{trust})
{tokenizer}```

{loading}

## Cost

{costs}
"""
TOKENIZER = 'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
STOCK = "Plain transformers loads it."
PADDED = """Plain transformers loads it, and so does what else knows this family. It is as large and as slow as the
whole model: the weights of closed nodes are zeros. An export without `--stock true` leaves them out."""
WITH_CODE = """No class of transformers holds what is left: layers that differ in size, or constants for which the
family has no bias. So it comes with a modelling file, `modeling_subgraph.py`, and needs `trust_remote_code=True`.
Read the file first: it is short."""


@dataclass(frozen=True)
class HFExport:
    """An exported folder."""

    folder: Path
    stock: bool
    """Whether plain transformers loads it; otherwise it needs `trust_remote_code=True`."""
    max_logit_gap: float
    """Largest difference between the logits of the folder's model and of the gated one, over the largest logit."""
    before: Cost
    after: Cost
    padded: bool = False
    """Whether closed nodes are zeros, so that it is no smaller than the whole model."""


def model_card(export: HFExport, mask: Mask, gates: Tensor, has_tokenizer: bool) -> str:
    """The text of `README.md`, with the metadata that the hub reads at its start.

    Args:
        export: The folder, and its costs.
        mask: The bank.
        gates: The mask that was exported, shape (nodes,).
        has_tokenizer: Whether the folder has a tokenizer.
    """
    graph, n_open = mask.graph, int(gates.sum())
    heads, mlps = (int(n) for n in graph.count(gates))
    folder = export.folder.name
    return CARD.format(
        base_model=base_model(mask.model.lm),
        model=short_name(mask.model.lm),
        n_open=n_open,
        n_nodes=graph.n_nodes,
        heads=heads,
        n_heads=graph.n_layers * graph.n_heads,
        mlps=mlps,
        n_mlps=graph.n_layers,
        closed=_closed(export, mask.ablation),
        quality=_quality(mask, n_open),
        gap=export.max_logit_gap,
        imports="AutoModelForCausalLM" + ", AutoTokenizer" * has_tokenizer,
        folder=folder,
        trust="" if export.stock else ", trust_remote_code=True",
        tokenizer=TOKENIZER.format(folder=folder) * has_tokenizer,
        loading=PADDED if export.padded else STOCK if export.stock else WITH_CODE,
        costs=cost_table(export.before, export.after),
    )


def _closed(export: HFExport, ablation: Ablation) -> str:
    """What has become of the other nodes."""
    where = "The weights of the others are zeros" if export.padded else "The others are gone from the weights"
    stand_in = "constants stand in for them" if ablation.known else "nothing stands in for them"
    return f"{where}, and {stand_in} ({ablation.name} ablation)."


def _quality(mask: Mask, n_open: int) -> str:
    """The KL of the masks of this size, if it was measured."""
    row = next((row for row in mask.metrics if row.get("s") == n_open and row.get("kl") is not None), None)
    if row is None:
        return ""
    is_per_input = mask.config.get("model", {}).get("scope") == "input"
    texts = "texts of the masks" if is_per_input else "texts of the last evaluation (after a run, held-out ones)"
    n_groups = len(mask.groups)
    of = "this model" if n_groups == 1 else f"subgraph), mean over the subgraphs of this size of {n_groups} groups"
    return f"\nKL(whole model || {of}{')' * (n_groups == 1)} on the {texts}: {row['kl']:.4g} nats a token."


def cost_table(before: Cost, after: Cost) -> str:
    """Costs before and after, as a table, with a line that says how times were measured."""
    rows = [
        ("parameters", before.parameters, after.parameters, "{:,}"),
        ("bytes of weights", before.weight_bytes, after.weight_bytes, "{:,}"),
        ("bytes of the key-value cache for each token", before.cache_bytes, after.cache_bytes, "{:,}"),
        (f"prefill of {before.prompt_tokens} tokens, ms", before.prefill_ms, after.prefill_ms, "{:.1f}"),
        ("decoding of a token, ms", before.decode_ms, after.decode_ms, "{:.1f}"),
    ]
    lines = ["| | whole model | this model | ratio |", "|---|---|---|---|"]
    for name, whole, small, form in rows:
        if whole is not None and small is not None:
            lines.append(f"| {name} | {form.format(whole)} | {form.format(small)} | {small / whole:.2f} |")
    if before.prefill_ms is not None:
        lines += [
            "",
            f"{before.setting}, batch 1. The models took turns, prefill by prefill and token by token;",
            f"medians of {N_PREFILLS} prefills and {N_DECODED} tokens.",
        ]
    return "\n".join(lines)
