"""What evidence is gathered on besides a bank."""

import json
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from conftest import refused
from torch import Tensor
from torch.testing import assert_close

import masklearn as ml
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.evaluation_texts import load_texts
from masklearn.cli.evidence_sources import evidence_sources
from masklearn.data import MaskData
from masklearn.evidence.bench import Bench
from masklearn.evidence.plan import EvidencePlan
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.tiny import tasks


def content(data: MaskData, split: str) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in data.parts[split].ids]


def test_texts_of_a_column_are_the_held_out_rows(tmp_path: Path) -> None:
    path, lm = tmp_path / "rows.jsonl", ml.load_lm()
    sentences = [*islice(tasks.texts(), 120)]
    rows = [
        {"text": text, "kind": str(i % 2), "other": other}
        for i, (text, other) in enumerate(zip(sentences[:60], sentences[60:], strict=True))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    data, other = MaskData(str(path)), MaskData(str(path), text_column="other")
    data.setup("fit")
    other.setup()
    masked_lm = MaskedLM(lm)
    mask = torch.zeros(1, 1, masked_lm.graph.n_nodes, dtype=torch.bool)
    mask[..., 0] = True
    model = ModelId("embedded", None, masked_lm.layout.fingerprint)
    bank = ml.Mask(mask, mask.float(), torch.tensor([1]), masked_lm.graph, model, config={"data": {"path": str(path)}})
    plan = EvidencePlan(transfer=["column:kind", "text_column:other", str(path)], checkpoints=[str(tmp_path / "half")])
    lm.save_pretrained(tmp_path / "half")
    learned = torch.tensor(data.learned_texts)
    of_bench = Bench(masked_lm, replace(bank, learned_texts=learned), data, plan)
    load = partial(load_texts, bank=bank, masked_lm=masked_lm, model=model, scope="dataset", trust_remote_code=False)
    sources = evidence_sources(of_bench, plan, load, {"path": str(path)}, EvaluateFlags(mask=[]))
    found = {texts.name: [tuple(ids[real].tolist()) for batch in texts.batches
                          for ids, real in zip(batch.input_ids, batch.real, strict=True)]
             for texts in sources.other_texts}  # fmt: skip
    assert {*found} == {"column:kind: 0", "column:kind: 1", "text_column:other", str(path)}
    held_out = sorted(content(data, "test"))
    assert sorted(found["column:kind: 0"] + found["column:kind: 1"]) == sorted(found[str(path)]) == held_out
    in_other = {text.row: tuple(text.ids) for text in other.parts["all"].encoded}
    assert sorted(found["text_column:other"]) == sorted(in_other[text.row] for text in data.parts["test"].encoded)
    few = EvidencePlan(transfer=[str(path)], texts=3)  # the file begins with texts that are known
    of_few = evidence_sources(replace(of_bench, plan=few), few, load, {"path": str(path)}, EvaluateFlags(mask=[]))
    assert sum(len(batch.input_ids) for batch in of_few.other_texts[0].batches) == 3
    reworded = EvidencePlan(paraphrase_column="other")
    packed = {"path": str(path), "pack": True}
    message = refused(lambda: evidence_sources(of_bench, reworded, load, packed, EvaluateFlags(mask=[])))
    assert "plan.paraphrase_column: other cannot be used: the run has joined its rows (data.pack)" in message
    (checkpoint,) = sources.checkpoints
    assert checkpoint.fingerprint == model.fingerprint
    assert_close(checkpoint.load().full(*only_text(data)), masked_lm.full(*only_text(data)))


def only_text(data: MaskData) -> tuple[Tensor, Tensor]:
    batch = next(iter(data.loader("test")))
    return batch.input_ids, batch.scored
