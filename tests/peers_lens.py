"""Run a HookedTransformer under our hooks: run by `test_tool_hooks.py` in a Python that has an old TransformerLens.

Only files of masklearn that need nothing but torch are imported. Prints the logits, as JSON.
"""

import json
import sys
from types import ModuleType

import torch
from peers_eap import hooked
from safetensors.torch import load_file


def main(package: str, folder: str, values: str, ids: list[list[int]], names: list[str]) -> None:
    """The logits under every mask that has values in a file: closed nodes emit zeros, then constants."""
    stand_in = ModuleType("masklearn")
    stand_in.__path__ = [package]
    sys.modules["masklearn"] = stand_in
    from masklearn.ablation import Ablation
    from masklearn.graph import NodeGraph
    from masklearn.tool_hooks import hooks_of

    model, tensors, graph = hooked(folder), load_file(values), NodeGraph.from_names(names)
    found = []
    for ablation in (Ablation(), Ablation.from_tensors("mean", tensors)):
        hooks = hooks_of(graph, tensors["mask"], ablation, "transformer_lens")
        found.append(model.run_with_hooks(torch.tensor(ids), fwd_hooks=hooks).tolist())
    print(json.dumps(found))


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:4], json.loads(sys.argv[4]), json.loads(sys.argv[5]))
