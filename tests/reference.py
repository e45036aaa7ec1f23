"""A second, independent implementation of gated models: the residual stream computed step by step, without hooks."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention, silu
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from masklearn.graph import NodeGraph

Gate = Callable[[str, Tensor], Tensor]
"""From a node's name and its output to what the node adds to the residual stream."""


def gated_logits(lm: PreTrainedModel, input_ids: Tensor, gates: Tensor, closed: Tensor | None = None) -> Tensor:
    """Return the logits (rows, tokens, vocabulary) under one gate vector for all rows.

    Args:
        lm: A Llama or GPT-2 model.
        input_ids: Shape (rows, tokens).
        gates: Shape (nodes,).
        closed: What every node adds to the residual stream when closed, shape (nodes, width); nothing by default.
    """
    graph = NodeGraph.of(lm)
    gate_of = dict(zip(graph.names, gates, strict=True))
    closed_of = dict(zip(graph.names, closed if closed is not None else torch.zeros(graph.n_nodes, 1), strict=True))

    def gate(name: str, output: Tensor) -> Tensor:
        return gate_of[name] * output + (1 - gate_of[name]) * closed_of[name]

    return run_with(lm, input_ids, gate)


def run_with(lm: PreTrainedModel, input_ids: Tensor, gate: Gate) -> Tensor:
    """Return the logits (rows, tokens, vocabulary) of a model in which every node's output passes through `gate`."""
    forward = {"llama": _llama, "gpt2": _gpt2}[lm.config.model_type]
    return forward(lm, input_ids, NodeGraph.of(lm), gate)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def _llama(lm: PreTrainedModel, input_ids: Tensor, graph: NodeGraph, gate: Gate) -> Tensor:
    model, config = lm.model, lm.config
    n, width = config.num_attention_heads, config.head_dim
    group_size = n // config.num_key_value_heads
    stream = model.embed_tokens(input_ids)
    cos, sin = model.rotary_emb(stream, torch.arange(input_ids.shape[1])[None])
    for i, layer in enumerate(model.layers):
        x = layer.input_layernorm(stream)
        attention = layer.self_attn
        q, k, v = (
            p(x).unflatten(-1, (-1, width)).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        added = torch.zeros_like(stream)
        for h in range(n):
            out = _attend(q[:, h], k[:, h // group_size], v[:, h // group_size])
            added += gate(f"a{i}.h{h}", out @ attention.o_proj.weight[:, h * width : (h + 1) * width].T)
        stream = stream + added
        x = layer.post_attention_layernorm(stream)
        mlp = layer.mlp
        stream = stream + gate(f"m{i}", mlp.down_proj(silu(mlp.gate_proj(x)) * mlp.up_proj(x)))
    return lm.lm_head(model.norm(stream))


def _gpt2(lm: PreTrainedModel, input_ids: Tensor, graph: NodeGraph, gate: Gate) -> Tensor:
    model, n = lm.transformer, graph.n_heads
    width = lm.config.n_embd // n
    stream = model.wte(input_ids) + model.wpe(torch.arange(input_ids.shape[1]))
    for i, layer in enumerate(model.h):
        x = layer.ln_1(stream)
        qkv = x @ layer.attn.c_attn.weight + layer.attn.c_attn.bias
        q, k, v = (part.unflatten(-1, (n, width)).transpose(1, 2) for part in qkv.chunk(3, -1))
        added = layer.attn.c_proj.bias  # the bias belongs to no head
        for h in range(n):
            out = _attend(q[:, h], k[:, h], v[:, h])
            added = added + gate(f"a{i}.h{h}", out @ layer.attn.c_proj.weight[h * width : (h + 1) * width])
        stream = stream + added
        x = layer.ln_2(stream)
        hidden = gelu(x @ layer.mlp.c_fc.weight + layer.mlp.c_fc.bias, approximate="tanh")
        stream = stream + gate(f"m{i}", hidden @ layer.mlp.c_proj.weight + layer.mlp.c_proj.bias)
    return lm.lm_head(model.ln_f(stream))
