"""Circuits that were found elsewhere, as a bank: to evaluate, compare, save and share like learned masks."""

from collections.abc import Iterable

import torch

from masklearn.ablation import Ablation
from masklearn.errors import UserError
from masklearn.graph import NodeGraph
from masklearn.mask_file import Mask, ModelId
from masklearn.models import ModelOrName, fingerprint, load_lm, name_of, unwrapped


def circuit(lm: ModelOrName, *circuits: Iterable[str], ablation: Ablation = Ablation()) -> Mask:
    """A bank of circuits that are given by the names of their nodes.

    Args:
        lm: The model, or its hub id or folder.
        circuits: The nodes of each, such as `["a0.h1", "m0"]`: layer 0's head 1, and layer 0's MLP.
        ablation: What all other nodes emit: zero by default, or that of a bank (`bank.ablation`), with its values.

    Returns:
        The bank, with one group, and the circuits as its sizes in ascending order. Its scores are 1 for nodes kept.

    Raises:
        UserError: If there is no circuit, if one is empty or names a node that the model lacks, or if two are of one
            size; or if the ablation is only a name.
    """
    if not isinstance(ablation, Ablation):
        raise UserError(f"ablation {ablation!r} has no values. Take that of a bank: ablation=Mask.load(FILE).ablation")
    lm = load_lm(lm) if isinstance(lm, str) else unwrapped(lm)
    graph = NodeGraph.of(lm)
    if any(isinstance(names, str) for names in circuits):
        raise UserError("a circuit is a list of names, such as circuit(lm, ['a0.h1', 'm0']), and one given is a string")
    circuits = tuple([*names] for names in circuits)
    if not circuits or not all(circuits):
        raise UserError("a circuit has no nodes; name at least one, such as circuit(lm, ['a0.h1', 'm0'])")
    if unknown := [name for names in circuits for name in names if name not in graph.names]:
        raise UserError(
            f"the model has no node {unknown[0]!r}; its nodes are heads from a0.h0 to "
            f"a{graph.n_layers - 1}.h{graph.n_heads - 1} and MLPs from m0 to m{graph.n_layers - 1}"
        )
    ordered = sorted((set(names) for names in circuits), key=len)
    sizes = [len(names) for names in ordered]
    if len(set(sizes)) < len(sizes):
        raise UserError(
            f"circuits have {sizes} nodes; a bank holds one of each size. Make a bank for each of the others"
        )
    mask = torch.tensor([[name in names for name in graph.names] for names in ordered])[None]
    model = ModelId(name_of(lm), None, fingerprint(lm))
    return Mask(mask, mask.float(), torch.tensor(sizes), graph, model, ablation=ablation)
