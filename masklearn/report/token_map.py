"""Subgraphs of one text, token by token, packed as numbers that the page's picker draws."""

import base64
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from masklearn.edges import EdgeGraph
from masklearn.text_bank import EdgeBank, TextBank

MAX_LISTED = 2_000
"""Edges or positions of a subgraph that are drawn one by one."""
MAX_NUMBERS = 1_000_000
"""Numbers that the drawings of a bank take on the page, of one or two bytes each."""
RESIDUAL_ATTENTION, MLP, RESIDUAL_MLP = 1, 2, 4
"""What else than heads is kept of a layer at a token, as bits of a number."""
N_BITS = 3
"""Number of these bits."""

TokenMap = tuple[str, str]
"""`listed` with the gaps between the numbers of what is kept, or `counted` with a number for every layer and token;
both packed."""


def token_maps(bank: TextBank, text: int, max_numbers: int) -> list[TokenMap | None]:
    """Pack the subgraphs of one text, the smallest first.

    Args:
        bank: The bank.
        text: Number of the text.
        max_numbers: Numbers that they may take together.

    Returns:
        For every size: `listed` up to `MAX_LISTED` edges or positions, `counted` above, None where neither fits.
    """
    maps = list[TokenMap | None]()
    for kept in bank.kept[text]:
        ids = kept.tolist()
        name = "listed" if len(ids) <= min(MAX_LISTED, max_numbers) else "counted"
        numbers = gaps(ids) if name == "listed" else counted(bank, bank.n_tokens[text], kept)
        fits = len(numbers) <= max_numbers
        max_numbers -= len(numbers) if fits else 0
        maps.append((name, pack_numbers(numbers)) if fits else None)
    return maps


def gaps(ascending: Sequence[int]) -> list[int]:
    """Differences of ascending numbers, beginning at zero."""
    return [number - before for before, number in zip([0, *ascending], ascending, strict=False)]


def counted(bank: TextBank, n_tokens: int, kept: Tensor) -> list[int]:
    """Count what a subgraph keeps of every layer at every token.

    Args:
        bank: The bank.
        n_tokens: Tokens of the text.
        kept: Numbers of the edges or positions.

    Returns:
        For every layer and then every token: attention edges into the token, or heads at the token, times 8, plus the
        bits `RESIDUAL_ATTENTION`, `MLP` and `RESIDUAL_MLP`.
    """
    nodes = bank.graph
    if isinstance(bank, EdgeBank):
        graph = EdgeGraph.causal(nodes.n_layers, nodes.n_heads, n_tokens, bank.parallel)
        gates = graph.gates(graph.masks([kept]))
        heads, mlp = gates.attention.sum((2, 4)), gates.mlp
        residual = RESIDUAL_ATTENTION * gates.residual_attention + RESIDUAL_MLP * gates.residual_mlp
    else:
        flat = torch.zeros(n_tokens * nodes.n_nodes)
        flat[kept] = 1
        grid = nodes.by_layer(flat.unflatten(0, (n_tokens, -1))).transpose(0, 1)  # (layers, tokens, heads + 1)
        heads, mlp, residual = grid[..., :-1].sum(-1), grid[..., -1], 0
    return (heads * 2**N_BITS + MLP * mlp + residual).flatten().int().tolist()


def pack_numbers(numbers: Iterable[int]) -> str:
    """Numbers from 0 on as base64 of little-endian groups of 7 bits, all but a number's last with the high bit set."""
    packed = bytearray()
    for number in numbers:
        while number > 127:
            packed.append(number & 127 | 128)
            number >>= 7
        packed.append(number)
    return base64.b64encode(packed).decode()
