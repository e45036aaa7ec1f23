"""The model card of an exported folder: what it is, what it costs and how to load it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from masklearn.export.measurement import N_DECODED, N_PREFILLS, PROMPT_TOKENS, Cost
from masklearn.mask_file import Mask

CARD = """---
library_name: transformers
pipeline_tag: text-generation
base_model: {model}
tags: [masklearn, pruned, circuit]
---

# {n_open} of {n_nodes} nodes of {model}

A subgraph that masklearn selected: {heads} of {n_heads} attention heads and {mlps} of {n_mlps} MLPs.
The others are gone from the weights. {stand_in}{quality}

When this folder was written, its logits were compared with those of the masked model, on whole texts and token by token
with a cache, in a batch padded on the left. They differ by at most {gap:.1g} of the largest.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

lm = AutoModelForCausalLM.from_pretrained("{folder}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

{loading}

## Cost

{costs}
"""
STOCK = "Plain transformers loads it."
WITH_CODE = """Its layers differ in size, which no class of transformers can hold. It comes with a modelling file,
`modeling_subgraph.py`, so it needs `trust_remote_code=True`. Read the file first: it is short."""


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


def model_card(export: HFExport, mask: Mask, gates: Tensor) -> str:
    """The text of `README.md`, with the metadata that the hub reads at its start.

    Args:
        export: The folder, and its costs.
        mask: The bank.
        gates: The mask that was exported, shape (nodes,).
    """
    graph, n_open = mask.graph, int(gates.sum())
    heads, mlps = (int(n) for n in graph.count(gates))
    row = next((row for row in mask.metrics if row.get("s") == n_open and row.get("kl") is not None), None)
    return CARD.format(
        model=mask.model.lm,
        n_open=n_open,
        n_nodes=graph.n_nodes,
        heads=heads,
        n_heads=graph.n_layers * graph.n_heads,
        mlps=mlps,
        n_mlps=graph.n_layers,
        stand_in=f"Constants ({mask.ablation.name} ablation) stand in for them." if mask.ablation.known else "",
        quality=f"\nKL(whole model || this model) on held-out texts: {row['kl']:.4g} nats a token." if row else "",
        gap=export.max_logit_gap,
        folder=export.folder.name,
        trust="" if export.stock else ", trust_remote_code=True",
        loading=STOCK if export.stock else WITH_CODE,
        costs=cost_table(export.before, export.after),
    )


def cost_table(before: Cost, after: Cost) -> str:
    """Costs before and after, as a table, with a line that says how times were measured."""
    rows = [
        ("parameters", before.parameters, after.parameters, "{:,}"),
        ("bytes of weights", before.weight_bytes, after.weight_bytes, "{:,}"),
        ("bytes of the key-value cache for each token", before.cache_bytes, after.cache_bytes, "{:,}"),
        (f"prefill of {PROMPT_TOKENS} tokens, ms", before.prefill_ms, after.prefill_ms, "{:.1f}"),
        ("decoding of a token, ms", before.decode_ms, after.decode_ms, "{:.1f}"),
    ]
    lines = ["| | whole model | this model | ratio |", "|---|---|---|---|"]
    for name, whole, small, form in rows:
        if whole is not None and small is not None:
            lines.append(f"| {name} | {form.format(whole)} | {form.format(small)} | {small / whole:.2f} |")
    if before.prefill_ms is not None:
        lines += [
            "",
            f"Batch 1, {torch.get_num_threads()} CPU threads or one GPU. The models took turns, prefill by prefill and",
            f"token by token; medians of {N_PREFILLS} prefills and {N_DECODED} tokens.",
        ]
    return "\n".join(lines)
