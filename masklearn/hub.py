"""Mask files on the Hugging Face hub: a repository with the mask file, its settings and a card."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from masklearn.errors import UserError, one_line

MASK_FILE = "mask.safetensors"
"""Name of the mask file in a repository or a folder."""
MAX_MAP_LAYERS, MAX_MAP_HEADS = 64, 64
"""Largest model whose nodes the card draws."""
NETWORK_ERRORS = (
    HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError,
)  # fmt: skip
"""What goes wrong with the hub."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""A repository of the hub."""
CARD = """---
library_name: masklearn
{base_model}tags: [masklearn, circuit, interpretability]
---

# Masks of {name}

{n_groups} of the {n_nodes} attention heads and MLPs of `{name}` (fingerprint `{fingerprint}`), under {ablation}
ablation. {origin}

```python
import masklearn as ml

mask = ml.Mask.from_pretrained("{repo}")
lm = ml.load_lm("{model}"{revision})
with ml.gated(lm, mask.select(s={size}{group}), {values}):
    ...
```

## Sizes

{table}
{figure}"""
RESAMPLED = "ml.MaskedLM(lm).resampled(corrupted_ids)"
"""What closed nodes emit under resample ablation, which a mask file does not hold."""


def push(mask: Any, repo: str, private: bool | None, token: str | None) -> str:
    """Write a bank to a repository of the hub, which is made if there is none.

    Args:
        mask: The `Mask`.
        repo: Such as `me/my-masks`.
        private: Whether a new repository is private; the account's own default if None.
        token: Token of the hub; that of `hf auth login` by default.

    Returns:
        The address of the repository.

    Raises:
        UserError: If there is no network, no token, or no right to write there.
    """
    with TemporaryDirectory() as folder:
        write_folder(mask, Path(folder), repo)
        try:
            api = HfApi(token=token)
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Masks of {short_name(mask.model.lm)}")
        except NETWORK_ERRORS as error:
            raise _hub_error(f"cannot write {repo} to the hub", error) from error
    return str(url)


def write_folder(mask: Any, folder: Path, repo: str) -> None:
    """Write what a repository of a bank holds: the mask file, its settings and its card."""
    mask.save(folder / MASK_FILE)
    (folder / "config.json").write_text(json.dumps(mask.config, indent=2), encoding="utf-8")
    (folder / "README.md").write_text(card(mask, repo), encoding="utf-8")


def fetch(repo: str | Path, revision: str | None, token: str | None) -> Path:
    """The mask file of a folder, or of a repository of the hub, which is downloaded once.

    Raises:
        UserError: If there is none, or if the hub cannot be reached.
    """
    folder = Path(repo).expanduser()
    if folder.is_dir():
        if not (folder / MASK_FILE).is_file():
            raise UserError(f"the folder {folder} has no {MASK_FILE}")
        return folder / MASK_FILE
    try:
        return Path(hf_hub_download(str(repo), MASK_FILE, revision=revision, token=token))
    except NETWORK_ERRORS as error:
        raise _hub_error(f"cannot read {MASK_FILE} of {repo}, which is no folder here, from the hub", error) from error


def _hub_error(what: str, error: Exception) -> UserError:
    advice = "Check the name, the network, and the token (hf auth login); Mask.save and Mask.load need neither"
    return UserError(f"{what} ({one_line(error)}). {advice}")


def base_model(lm: str) -> str:
    """The line of a card's metadata that names the model; empty for a folder, which the hub refuses there."""
    return f"base_model: {lm}\n" if HUB_ID.fullmatch(lm) and not Path(lm).exists() else ""


def short_name(lm: str) -> str:
    """A model's hub id, or the name of its folder."""
    return lm if HUB_ID.fullmatch(lm) else Path(lm).expanduser().name


def card(mask: Any, repo: str) -> str:
    """The card of a repository: what the bank is of, its sizes and metrics, and how to load it."""
    sizes, n_groups = mask.sizes.tolist(), len(mask.groups)
    middle = sizes[len(sizes) // 2]
    return CARD.format(
        base_model=base_model(mask.model.lm),
        name=short_name(mask.model.lm),
        model=mask.model.lm if not Path(mask.model.lm).is_absolute() else f"path/to/{short_name(mask.model.lm)}",
        revision=f', revision="{mask.model.revision}"' if mask.model.revision else "",
        fingerprint=mask.model.fingerprint,
        ablation=mask.ablation.name,
        origin=_origin(mask),
        values=RESAMPLED if mask.ablation.name == "resample" else "mask.ablation",
        repo=repo,
        n_groups="Masks" if n_groups == 1 else f"Masks of {n_groups} groups",
        n_nodes=mask.graph.n_nodes,
        size=middle,
        group="" if n_groups == 1 else f", group={mask.groups[0]!r}",
        table=_size_table(mask),
        figure=_node_map(mask, middle) if n_groups == 1 else "",
    )


def _origin(mask: Any) -> str:
    """Where the masks come from: learned, and by what, or given."""
    if not mask.config:
        return "They were not learned by masklearn, but given as circuits."
    if (objective := mask.config.get("model", {}).get("objective", "kl")) != "kl":
        return f"masklearn has learned which nodes lead to the answers of its texts ({objective})."
    return "masklearn has learned which nodes best reproduce the whole model's next-token distributions."


def _size_table(mask: Any) -> str:
    """Nodes, heads and MLPs of every size, and what was measured for it."""
    measured = {row.get("s"): row for row in mask.metrics}
    lines = ["| s | of all | heads | MLPs | KL (nats a token) | TV | top-1 |", "|---|---|---|---|---|---|---|"]
    heads, mlps = mask.graph.count(mask.mask)
    for index, s in enumerate(mask.sizes.tolist()):
        row = measured.get(s, {})
        found = [f"{row[name]:.4g}" if row.get(name) is not None else "" for name in ("kl", "tv", "top1")]
        counts = [f"{n[:, index].float().mean().item():.3g}" for n in (heads, mlps)]
        lines.append(f"| {s} | {s / mask.graph.n_nodes:.0%} | {' | '.join([*counts, *found])} |")
    return "\n".join(lines)


def _node_map(mask: Any, s: int) -> str:
    """The nodes of one mask, a line for each layer from the last to the first."""
    graph = mask.graph
    if graph.n_layers > MAX_MAP_LAYERS or graph.n_heads > MAX_MAP_HEADS:
        return ""
    rows = graph.by_layer(mask.select(s)).tolist()
    lines = []
    for layer, (*heads, mlp) in reversed(list(enumerate(rows))):
        lines.append(f"{layer:3}  {''.join('■' if head else '·' for head in heads)}  {'■' if mlp else '·'}")
    return f"\n## The mask of {s} nodes\n\nLayers from the last to the first, heads, and the MLP:\n\n```\n" + "\n".join(
        [*lines, "```", ""]
    )
