"""A subgraph as a Hugging Face folder of its own, in which closed heads and MLPs are gone."""

import copy
import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from masklearn.ablation import Ablation
from masklearn.errors import UserError, one_line
from masklearn.export import subgraph_model
from masklearn.export.anatomy import anatomy_of, require_removable
from masklearn.export.measurement import compare_costs
from masklearn.export.model_card import HFExport, model_card
from masklearn.export.stock import stock_config
from masklearn.export.verification import logit_gap, require_equal_logits
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

    Raises:
        UserError: If the folder exists, if the removal is not known for the family or not possible under the ablation,
            if there is no such mask, if the model is spread over devices or quantised, or if the folder's model differs
            from the gated one.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"{out} already exists and is kept. Choose another folder")
    require_plain(lm, "a smaller model")
    gates, anatomy = mask.select(s, group), anatomy_of(lm.config)
    require_removable(lm.config, mask.ablation)
    layout = verified_layout(lm)
    subgraph = _description(layout, gates, mask.ablation, anatomy)
    smaller = _without(lm, _constants(layout, subgraph, gates, mask.ablation), subgraph)
    with _new_folder(out) as part:
        config = stock_config(lm, smaller, subgraph)
        _write(part, smaller, lm, config, subgraph)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        loaded: Any = AutoModelForCausalLM.from_pretrained(part, dtype=lm.dtype, trust_remote_code=config is None)
        loaded = loaded.to(lm.device).eval().requires_grad_(False)
        require_equal_logits(lm, gap := logit_gap(loaded, lm, gates, mask.ablation, layout))
        export = HFExport(out, config is not None, gap, *compare_costs(lm, loaded, time))
        (part / "README.md").write_text(model_card(export, mask, gates), encoding="utf-8")
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
def _constants(layout: Layout, subgraph: dict[str, Any], gates: Tensor, ablation: Ablation) -> dict[str, Tensor]:
    """Constants that take the place of closed nodes, by the name of the parameter that holds them."""
    anatomy, values = subgraph["anatomy"], {}
    for index, (site, kept) in enumerate(zip(layout.sites, subgraph["layers"], strict=True)):
        prefix = f"{anatomy['layers']}.{index}"
        if kept["head_value"]:
            head_width = _input_width(site.output_projection) // layout.graph.n_heads
            closed = 1 - layout.graph.by_layer(gates)[index, :-1].to(layout.lm.dtype).to(layout.lm.device)
            emitted = torch.zeros(layout.graph.n_heads, head_width).to(closed)
            if ablation.known:
                emitted = ablation.heads[index][0, 0].to(closed) * closed[:, None]
            value = site.output_projection(emitted.flatten()[None, None])
            norm = anatomy.get("norm_after_attention")
            if not kept["heads"] and norm:
                value = site.layer.get_submodule(norm)(value)
            name = f"{anatomy['output']}.bias" if kept["heads"] else "value"
            values[f"{prefix}.{anatomy['attention']}.{name}"] = value.flatten()
        if kept["mlp_value"]:
            values[f"{prefix}.{anatomy['mlp']}.value"] = ablation.mlps[index].flatten().to(layout.lm.dtype)
    return values


def _input_width(projection: Any) -> int:
    return projection.nx if hasattr(projection, "nx") else projection.in_features


def _without(lm: PreTrainedModel, constants: dict[str, Tensor], subgraph: dict[str, Any]) -> PreTrainedModel:
    """A copy of the model without its closed nodes, and with the constants in their place."""
    cached = {name: vars(lm).pop(name) for name in list(vars(lm)) if name.startswith("_masklearn")}
    smaller = copy.deepcopy(lm)
    vars(lm).update(cached)
    subgraph_model.remove_closed(smaller, subgraph)
    parameters = dict(smaller.named_parameters())
    for name, value in constants.items():
        parameters[name].data = value.to(parameters[name])
    return smaller


def _write(
    folder: Path, smaller: PreTrainedModel, lm: PreTrainedModel, config: Any | None, subgraph: dict[str, Any]
) -> None:
    """Write weights, config and code; no code if there is a config of the stock class."""
    if config is not None:
        stock: Any = type(lm)(config)
        stock = stock.to(lm.dtype)
        stock.load_state_dict(smaller.state_dict(), strict=True)
        stock.generation_config = lm.generation_config
        stock.save_pretrained(folder)
        return
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
