"""Slow, independent references for edge graphs: streams, contributions and growth, one edge at a time."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from masklearn.edges import EdgeGates, EdgeGraph, EdgeLM
from masklearn.models import Layout

BUILDS = (
    "llama", "llama biases, tied", "gpt2", "gpt_neox", "phi", "opt", "olmo2", "gemma2", "gemma3_text", "cohere", "qwen2"
)  # fmt: skip
"""Sequential and parallel layers, norms before and after, biases, grouped heads, sliding windows, caps, bare MLPs."""


def text(n_tokens: int = 4) -> Tensor:
    """A text of up to seven tokens."""
    return torch.tensor([5, 9, 17, 4, 31, 8, 22])[:n_tokens]


def edge_lm(lm: PreTrainedModel) -> EdgeLM:
    """A model under edge gates, not verified."""
    return EdgeLM(Layout.of(lm))


def _rotate(vector: Tensor, position: int, theta: float) -> Tensor:
    half = len(vector) // 2
    angle = position / theta ** (torch.arange(half) / half)
    return vector * torch.cat([angle, angle]).cos() + rotate_half(vector) * torch.cat([angle, angle]).sin()


class LlamaReference:
    """A Llama that runs vertex by vertex and edge by edge, from its weights alone.

    Args:
        lm: The model, without biases.
        input_ids: The text, shape (tokens,).
        frozen: Whether patterns and norms are those of the first run.
    """

    def __init__(self, lm: Any, input_ids: Tensor, frozen: bool = False) -> None:
        self.frozen, self.first = frozen, dict[tuple, Tensor]()
        self.lm, self.input_ids, self.config = lm, input_ids, lm.config
        self.n_tokens, self.n_heads = len(input_ids), lm.config.num_attention_heads
        self.sources_per_value = self.n_heads // lm.config.num_key_value_heads
        self.layers: list[Any] = list(lm.model.layers)

    def _once(self, key: tuple, value: Tensor) -> Tensor:
        """A value of this run; of a frozen model, that of the first run."""
        return self.first.setdefault(key, value) if self.frozen else value

    def _norm(self, norm: Any, key: tuple, vector: Tensor) -> Tensor:
        return norm.weight * vector / self._once(key, (vector.square().mean() + norm.variance_epsilon).sqrt())

    def run(self, gates: EdgeGates) -> tuple[Tensor, dict[tuple, Tensor]]:
        """Run under the gates of one row.

        Returns:
            The final state of the last token; and the contribution of every edge before its gate: by kind, layer and
            target, for the attention with head and source.
        """
        stream = [self.lm.model.embed_tokens.weight[i] for i in self.input_ids]
        parts: dict[tuple, Tensor] = {}
        for layer in range(len(self.layers)):
            heads = self._attention(layer, stream)
            middle = []
            for t in range(self.n_tokens):
                parts["residual_attention", layer, t] = stream[t]
                total = gates.residual_attention[0, layer, t] * stream[t]
                for h in range(self.n_heads):
                    for j in range(t + 1):
                        parts["attention", layer, t, h, j] = heads[h, t, j]
                        total = total + gates.attention[0, layer, h, t, j] * heads[h, t, j]
                middle.append(total)
            stream = []
            for t in range(self.n_tokens):
                parts["residual_mlp", layer, t] = middle[t]
                parts["mlp", layer, t] = self._mlp(layer, t, middle[t])
                kept = gates.residual_mlp[0, layer, t] * middle[t]
                stream.append(kept + gates.mlp[0, layer, t] * parts["mlp", layer, t])
        return self._norm(self.lm.model.norm, ("final",), stream[-1]), parts

    def _attention(self, layer: int, stream: list[Tensor]) -> dict[tuple[int, int, int], Tensor]:
        """Contributions of every (head, target, source), before gates."""
        block, width = self.layers[layer], self.config.head_dim
        normed = [self._norm(block.input_layernorm, ("attention", layer, t), x) for t, x in enumerate(stream)]
        theta = self.config.rope_parameters["rope_theta"]
        found = {}
        for h in range(self.n_heads):
            kv = h // self.sources_per_value
            own, shared = slice(h * width, (h + 1) * width), slice(kv * width, (kv + 1) * width)
            q = [_rotate(block.self_attn.q_proj.weight[own] @ x, t, theta) for t, x in enumerate(normed)]
            k = [_rotate(block.self_attn.k_proj.weight[shared] @ x, t, theta) for t, x in enumerate(normed)]
            for t in range(self.n_tokens):
                scores = torch.stack([q[t] @ k[j] for j in range(t + 1)]) / width**0.5
                for j, alpha in enumerate(self._once(("pattern", layer, h, t), scores.softmax(0))):
                    value = block.self_attn.v_proj.weight[shared] @ normed[j]
                    found[h, t, j] = alpha * (block.self_attn.o_proj.weight[:, own] @ value)
        return found

    def _mlp(self, layer: int, t: int, vector: Tensor) -> Tensor:
        block = self.layers[layer]
        x = self._norm(block.post_attention_layernorm, ("mlp", layer, t), vector)
        up, gate = block.mlp.up_proj.weight @ x, block.mlp.gate_proj.weight @ x
        return block.mlp.down_proj.weight @ (nn.functional.silu(gate) * up)

    def importance(self, graph: EdgeGraph) -> Tensor:
        """The importance of every edge, shape (flat,)."""
        flat = torch.zeros(graph.n_places)
        weights, ones = graph.gates(flat[None]), graph.gates(torch.ones(1, graph.n_places))
        _, parts = self.run(ones)
        last = len(self.layers) - 1
        final = self.lm.model.norm
        end = parts["residual_mlp", last, self.n_tokens - 1] + parts["mlp", last, self.n_tokens - 1]
        scale = final.weight / (end.square().mean() + final.variance_epsilon).sqrt()
        for layer in range(len(self.layers)):
            for t in [self.n_tokens - 1] if layer == last else range(self.n_tokens):
                into = {k: v for k, v in parts.items() if k[0].endswith("attention") and k[1:3] == (layer, t)}
                total = sum(vector.abs().sum() for vector in into.values())
                for key, vector in into.items():
                    kind = getattr(weights, key[0])
                    index = (0, layer, key[3], t, key[4]) if len(key) > 3 else (0, layer, t)
                    kind[index] = vector.abs().sum() / total
                pair = {
                    kind: parts[kind, layer, t] * (scale if layer == last else 1) for kind in ("mlp", "residual_mlp")
                }
                for kind, vector in pair.items():
                    getattr(weights, kind)[0, layer, t] = vector.abs().sum() / sum(v.abs().sum() for v in pair.values())
        return flat


def all_edges(graph: EdgeGraph) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Every place of a flat vector of a causal, sequential graph with the levels and tokens of source and target."""
    found = []
    layers, heads, tokens = graph.n_layers, graph.n_heads, graph.n_tokens
    for layer in range(layers):
        base = layer * tokens * (heads * tokens + 3)
        for t in range(tokens):
            target, middle = (2 * layer + 1, t), (2 * layer + 2, t)
            for j in range(t + 1):
                for h in range(heads):
                    found.append((base + (h * tokens + t) * tokens + j, (2 * layer, j), target))
            direct = base + heads * tokens * tokens
            found.append((direct + tokens + t, (2 * layer, t), target))
            found += [(direct + k * tokens + t, target, middle) for k in (2, 0)]
    return found


def grow_slowly(graph: EdgeGraph, weights: Tensor, n_edges: int) -> list[int]:
    """s-Trace by scanning every edge into a reached vertex at every step; for weights without ties."""
    edges, kept = all_edges(graph), list[int]()
    reached = {(2 * graph.n_layers, graph.n_tokens - 1)}
    while len(kept) < n_edges:
        frontier = [edge for edge in edges if edge[2] in reached and edge[0] not in kept]
        number, source, _ = max(frontier, key=lambda edge: float(weights[edge[0]]))
        kept.append(number)
        reached.add(source)
    return kept
