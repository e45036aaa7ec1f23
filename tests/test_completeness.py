"""Completeness, and the interaction of pairs, on models solved by hand."""

from typing import Any

import pytest
import torch
from hand_bench import HandBench, bank_of, elsewhere
from test_evidence import GRAPH, planted
from transformers import LlamaConfig, LlamaForCausalLM

from masklearn.data import Batch, MaskData
from masklearn.evidence.completeness import completeness_row, pair_rows
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.verdicts import verdict_table
from masklearn.masking import MaskedLM


def hand_llama(*heads: tuple[int, int, int, int]) -> MaskedLM:
    """A model of width 4 with two layers of two heads, in which some heads copy a dimension into another.

    Each is given as layer, head, the dimension that it reads and the one that it writes, with attention to all tokens
    alike. A token is +1 or -1 in dimension 0, and the logits read dimension 3 alone.
    """
    config = LlamaConfig(
        vocab_size=8, hidden_size=4, intermediate_size=2, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=2, rms_norm_eps=1e-12, tie_word_embeddings=False,
    )  # fmt: skip
    lm: Any = LlamaForCausalLM(config).eval().requires_grad_(False)
    for block in lm.model.layers:
        for part in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj, block.self_attn.o_proj):
            part.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    for layer, head, source, target in heads:
        lm.model.layers[layer].self_attn.v_proj.weight[2 * head, source] = 1
        lm.model.layers[layer].self_attn.o_proj.weight[target, 2 * head] = 1000
    lm.model.embed_tokens.weight.zero_()
    lm.model.embed_tokens.weight[:, 0] = torch.tensor([1.0, -1.0] * 4)
    lm.lm_head.weight.zero_()
    lm.lm_head.weight[0, 3] = 1
    return MaskedLM(lm)


def hand_bench(masked_lm: MaskedLM, *names: str, n_texts: int = 12) -> HandBench:
    mask = torch.tensor([name in names for name in masked_lm.graph.names])
    ids = torch.randint(0, 8, (n_texts, 5), generator=torch.Generator().manual_seed(0))
    everywhere, index = torch.ones_like(ids, dtype=torch.bool), torch.arange(n_texts)
    last = torch.zeros_like(everywhere)
    last[:, -1] = True  # five signs never cancel
    batches = [Batch(ids, everywhere, last, index, torch.zeros_like(index))]
    return HandBench(masked_lm, bank_of(masked_lm, mask), MaskData(), EvidencePlan(), batches=batches)


BACKUPS = hand_llama((0, 0, 0, 3), (0, 1, 0, 3))
"""Two heads write the same; as the last norm divides by their sum, either is as good as both."""
CHAIN = hand_llama((0, 0, 0, 2), (1, 0, 2, 3))
"""The second head passes on what the first has written; without either nothing comes out."""


def test_a_circuit_without_a_backup_is_incomplete() -> None:
    alone = completeness_row(hand_bench(BACKUPS, "a0.h0"), 0, 1)
    assert (alone["verdict"], alone["closed"]) == ("incomplete", "a0.h0")
    assert alone["run_kl"] == pytest.approx(0, abs=1e-4)
    assert alone["low"] > 0.1
    both = completeness_row(hand_bench(BACKUPS, "a0.h0", "a0.h1"), 0, 2)
    assert (both["verdict"], both["excess"]) == ("no gap found", pytest.approx(0, abs=1e-4))


def test_nine_texts_give_no_verdict_on_completeness() -> None:
    row = completeness_row(hand_bench(BACKUPS, "a0.h0", n_texts=9), 0, 1)
    assert row["verdict"] == "not tested"
    empty: dict[str, Any] = {key: [] for key in ("tests", "stability", "near_optimal", "controls")}
    verdicts = verdict_table(empty | {"completeness": [row]}, [("dataset", 1)], {"completeness"})
    (verdict,) = [row for row in verdicts if row["claim"] == "complete"]
    assert (verdict["verdict"], verdict["measured"]) == ("not tested", "9 texts; at least 10 are needed")


def test_backups_interact_positively_and_links_of_a_chain_negatively() -> None:
    """The KL of nothing is c: closing a backup costs 0 and both cost c; closing a link or both links cost c."""
    for model, names, sign, kind in (
        (BACKUPS, ("a0.h0", "a0.h1"), 1, "redundant"),
        (CHAIN, ("a0.h0", "a1.h0"), -1, "either suffices to break it"),
    ):
        bench = hand_bench(model, *names)
        (nothing,) = bench.scores(0, [torch.zeros(1, model.graph.n_nodes, dtype=torch.bool)], "")
        (row,) = pair_rows(bench, 0, 2)
        assert (row["node"], row["other"], row["kind"]) == (*names, kind)
        assert row["interaction"] == pytest.approx(sign * float(nothing.mean_kl[0]), rel=1e-3)
    masked_lm, plant, batches = planted()
    less = plant & elsewhere(3)  # its KL is not zero
    bench = HandBench(masked_lm, bank_of(masked_lm, less), MaskData(), EvidencePlan(pairs=2), batches=batches)
    (row,) = pair_rows(bench, 0, 3)
    i, j = (torch.tensor([name == row[key] for name in GRAPH.names]) for key in ("node", "other"))
    (found,) = bench.scores(0, [torch.stack([less, less & ~i, less & ~j, less & ~i & ~j])], "")
    none, first, second, both = found.mean_kl.tolist()
    assert none > 0.01
    assert row["interaction"] == pytest.approx((both - first) - (second - none))
    unrelated = hand_bench(BACKUPS, "a0.h0", "a1.h1")  # the second does nothing
    assert [row["kind"] for row in pair_rows(unrelated, 0, 2)] == ["none found"]
