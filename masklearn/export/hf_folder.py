"""A subgraph as a Hugging Face folder of its own, in which closed heads and MLPs are gone."""

import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from masklearn.ablation import Ablation
from masklearn.errors import UserError, one_line
from masklearn.export import subgraph_model
from masklearn.export.anatomy import anatomy_of, require_removable
from masklearn.export.measurement import compare_costs
from masklearn.export.model_card import HFExport, model_card
from masklearn.export.padding import padded
from masklearn.export.stock import stock_config
from masklearn.export.verification import compare_folder, load_folder, plain_copy
from masklearn.mask_file import Mask
from masklearn.masking import verified_layout
from masklearn.models import Layout, require_plain

MODEL_TYPE = "masklearn_subgraph"
"""Model type of a folder with code: one that transformers does not have, so that it never builds the whole model."""
MODULE = "modeling_subgraph"
"""Name of the code's file."""
TAIL = '''

from transformers import {config}, {model}  # noqa: E402


class SubgraphConfig({config}):
    """The family's config, and what is left of the model."""

    model_type = "{model_type}"


class SubgraphForCausalLM(SubgraphMixin, {model}):
    """The family's causal language model without what a mask closes."""

    config_class = SubgraphConfig
'''
"""End of the code in a folder: the classes of the family."""


def to_hf(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    mask: Mask,
    s: int | float,
    out: str | Path,
    group: str | int | None = None,
    time: bool = True,
    stock: bool = False,
) -> HFExport:
    """Write the subgraph of a mask as a Hugging Face folder, load it again, and compare it with the gated model.

    Args:
        lm: The model that the mask was learned on.
        tokenizer: Its tokenizer, which the folder gets as well.
        mask: The bank.
        s: Size of the subgraph.
        out: The folder to write; it must not exist.
        group: Group of the mask, if there are several.
        time: Whether to measure prefill and decode time of both models.
        stock: Whether plain transformers must load the folder, at the price of zero weights in place of closed nodes
            where its classes cannot do without them.

    Raises:
        UserError: If the folder exists, if the removal is not known for the family or not possible under the ablation,
            if there is no such mask, if the model is spread over devices or quantised, if `stock` is asked for and the
            family has no bias for the constants, or if the folder's model differs from the gated one.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"{out} already exists and is kept. Choose another folder")
    require_plain(lm, "a smaller model")
    gates, anatomy = mask.select(s, group), anatomy_of(lm.config)
    require_removable(lm.config, mask.ablation)
    layout = verified_layout(lm)
    with _new_folder(out) as part:
        is_stock, is_padded = _write(
            part, layout, _description(layout, gates, mask.ablation, anatomy), gates, mask.ablation, stock
        )
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        gap = compare_folder(part, lm, gates, mask.ablation)
        costs = compare_costs(lm, load_folder(part, lm, lm.dtype), time and not is_padded)
        export = HFExport(out, is_stock, gap, *costs, is_padded)
        card = model_card(export, mask, gates, has_tokenizer=tokenizer is not None)
        (part / "README.md").write_text(card, encoding="utf-8")
    return export


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name if all goes well, and is removed otherwise.

    Raises:
        UserError: If it cannot be written.
    """
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {one_line(error)}. Choose another folder, or make room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _description(layout: Layout, gates: Tensor, ablation: Ablation, anatomy: dict[str, Any]) -> dict[str, Any]:
    """What `subgraph_model.remove_closed` needs to know: see there."""
    layers = []
    for index, (site, row) in enumerate(zip(layout.sites, layout.graph.by_layer(gates), strict=True)):
        heads = row[:-1].nonzero().flatten().tolist()
        closed = len(heads) < layout.graph.n_heads and ablation.known
        has_value = closed or (not heads and site.projection_bias is not None)
        is_open = bool(row[-1])
        layers.append({"heads": heads, "head_value": has_value, "mlp": is_open,
                       "mlp_value": not is_open and bool(ablation.mlps and ablation.mlps[index].any())})  # fmt: skip
    return {"anatomy": anatomy, "n_heads": layout.graph.n_heads, "layers": layers}


@torch.no_grad()
def _head_constants(layout: Layout, subgraph: dict[str, Any], gates: Tensor, ablation: Ablation) -> dict[int, Tensor]:
    """What the output projections of layers with closed heads emit for these, bias included, shape (width,)."""
    values = {}
    for index, (site, kept) in enumerate(zip(layout.sites, subgraph["layers"], strict=True)):
        if kept["head_value"]:
            head_width = _input_width(site.output_projection) // layout.graph.n_heads
            closed = 1 - layout.graph.by_layer(gates)[index, :-1].to(layout.lm.dtype).to(layout.lm.device)
            emitted = torch.zeros(layout.graph.n_heads, head_width).to(closed)
            if ablation.known:
                emitted = ablation.heads[index][0, 0].to(closed) * closed[:, None]
            values[index] = site.output_projection(emitted.flatten()[None, None]).flatten()
    return values


def _input_width(projection: Any) -> int:
    return projection.nx if hasattr(projection, "nx") else projection.in_features


@torch.no_grad()
def _without(
    layout: Layout, constants: dict[int, Tensor], subgraph: dict[str, Any], ablation: Ablation
) -> PreTrainedModel:
    """A copy of the model without its closed nodes, and with constants in their place."""
    anatomy, smaller = subgraph["anatomy"], plain_copy(layout.lm)
    subgraph_model.remove_closed(smaller, subgraph)
    parameters = dict(smaller.named_parameters())
    for index, (site, kept) in enumerate(zip(layout.sites, subgraph["layers"], strict=True)):
        prefix = f"{anatomy['layers']}.{index}"
        if index in constants:
            value, norm = constants[index], anatomy.get("norm_after_attention")
            if not kept["heads"] and norm:
                value = site.layer.get_submodule(norm)(value)
            name = f"{anatomy['output']}.bias" if kept["heads"] else "value"
            parameters[f"{prefix}.{anatomy['attention']}.{name}"].data = value
        if kept["mlp_value"]:
            value = ablation.mlps[index].flatten().to(layout.lm.device, layout.lm.dtype)
            parameters[f"{prefix}.{anatomy['mlp']}.value"].data = value
    return smaller


def _write(
    folder: Path, layout: Layout, subgraph: dict[str, Any], gates: Tensor, ablation: Ablation, stock: bool
) -> tuple[bool, bool]:
    """Write weights and config, and code if the family's class cannot hold them.

    Returns:
        Whether it can, and whether closed nodes are zeros for that.
    """
    constants = _head_constants(layout, subgraph, gates, ablation)
    smaller = _without(layout, constants, subgraph, ablation)
    config, weights = stock_config(layout.lm, smaller, subgraph), smaller.state_dict()
    is_padded = stock and config is None
    if is_padded:
        config, weights = padded(layout, subgraph, constants, ablation)
    if config is None:
        _write_with_code(folder, smaller, layout.lm, subgraph)
        return False, False
    model: Any = type(layout.lm)(config)
    model = model.to(layout.lm.dtype)
    model.load_state_dict(weights, strict=True)
    model.generation_config = layout.lm.generation_config
    model.save_pretrained(folder)
    return True, is_padded


def _write_with_code(folder: Path, smaller: PreTrainedModel, lm: PreTrainedModel, subgraph: dict[str, Any]) -> None:
    """Write a model and the code that its narrow layers need."""
    smaller.save_pretrained(folder, save_original_format=False)  # names as in the class, which the code extends
    names = {"config": type(lm.config).__name__, "model": type(lm).__name__, "model_type": MODEL_TYPE}
    code = inspect.getsource(subgraph_model) + TAIL.format(**names)
    (folder / f"{MODULE}.py").write_text(code, encoding="utf-8")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings |= {"model_type": MODEL_TYPE, "base_model_type": lm.config.model_type, "subgraph": subgraph}
    settings["architectures"] = ["SubgraphForCausalLM"]
    settings["auto_map"] = {
        "AutoConfig": f"{MODULE}.SubgraphConfig", "AutoModelForCausalLM": f"{MODULE}.SubgraphForCausalLM",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
