"""Score a submission folder with MIB's own evaluator: run by `test_mib.py` in a Python that has its packages.

Prints CPR, CMD and the faithfulness and accuracy at its sizes, as JSON.
"""

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peers_eap import hooked
from transformers import PreTrainedTokenizerFast


def with_tokenizer(folder: str) -> Any:
    """The model of a folder in TransformerLens, with the folder's tokenizer."""
    model, tokenizer = hooked(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token  # as TransformerLens sets them
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos, model.cfg.default_padding_side = bool(tokenizer("")["input_ids"]), "right"
    model.cfg.ungroup_grouped_query_attention = True
    return model


def main(lm: str, dataset: str, task: str, submission: str) -> None:
    """Score the files of one task and model, each as the evaluator does."""
    drawing: Any = ModuleType("pygraphviz")  # draws graphs, which takes no part here
    drawing.AGraph = object
    sys.modules.setdefault("pygraphviz", drawing)
    from eap.evaluate import evaluate_baseline  # pyright: ignore
    from eap.graph import Graph  # pyright: ignore
    from MIB_circuit_track import evaluation  # pyright: ignore
    from MIB_circuit_track.dataset import HFEAPDataset  # pyright: ignore
    from MIB_circuit_track.metrics import get_metric  # pyright: ignore

    model = with_tokenizer(lm)
    loader = HFEAPDataset(dataset, model.tokenizer, split="test", task=task, model_name="gpt2").to_dataloader(20)
    metric = partial(get_metric("logit_diff", task, model.tokenizer, model), mean=False, loss=False)
    files = sorted(Path(submission).iterdir())
    common = {"level": "node", "absolute": False, "quiet": True}
    if len(files) == 1:
        found = evaluation.evaluate_area_under_curve(model, Graph.from_json(files[0]), loader, metric, **common)
    else:
        found = evaluation.evaluate_area_under_curve_multifile(submission, model, "gpt2", loader, metric, **common)
    full = evaluate_baseline(model, loader, [metric], quiet=True).mean().item()
    accuracy = partial(get_metric("acc", task, model.tokenizer, model), mean=False)
    top1 = evaluate_baseline(
        model, loader, [lambda *args: accuracy(*args[:3], torch.tensor(args[3]))], quiet=True
    ).mean()  # fmt: skip
    result = {"cpr": found[1], "cmd": found[2], "faithfulness": found[4], "full_logit_diff": full}
    print(json.dumps(result | {"full_answer_top1": top1.item(), "texts": len(loader.dataset)}))


if __name__ == "__main__":
    sys.path[:0] = [f"{sys.argv[1]}/src", sys.argv[2]]
    with torch.no_grad():
        main(*sys.argv[3:])
