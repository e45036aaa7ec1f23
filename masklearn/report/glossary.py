"""The results in words: what each is called, and what every number on the page means."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One result of the study."""

    title: str
    lead: str
    figures: tuple[str, ...]
    """Results that figures say they show."""
    tables: tuple[str, ...]
    meaning: dict[str, str]
    """Definitions of what stands in figures and tables."""
    absent: str
    """Why there may be no figure."""


KINDS = {
    "learned": "The subgraphs of the bank: for each size, the nodes kept so that the next-token distribution stays as "
    "close as can be to the full model's.",
    "inverse": "All nodes but the learned ones; drawn at the size of the subgraph that was taken out.",
    "random": "Nodes drawn uniformly; mean of 10 draws for each size, the same for every input.",
    "random-matched": "Nodes drawn uniformly among subgraphs with as many heads and as many MLPs as the learned one; "
    "mean of 10 draws for every input.",
    "norm": "The nodes with the largest share, in L1 norm, of what meets where they add to the residual stream: the "
    "importance of s-Trace, at the level of nodes.",
    "band, low, high": "95 % percentile interval of 1,000 bootstrap resamples of the inputs.",
}
FEW = "Curves, areas and phases take three sizes or more."

RESULTS = (
    Result(
        "Density curve",
        "How far subgraphs are from the full model as they grow.",
        ("curve",),
        ("phases", "curve"),
        {
            "TV distance": "Half the sum over the vocabulary of the absolute differences of two probabilities: 0 when "
            "the distributions are equal, 1 when they have nothing in common. Mean over inputs.",
            "KL": "KL(full || subgraph), in nats, mean over inputs.",
            "fraction": "Nodes kept over all nodes of the model, heads and MLPs alike.",
            **KINDS,
            "head in place": "The smallest size at which at least half of the inputs have the full model's most "
            "probable token first.",
            "refinement begins": "One to three straight pieces are fitted to mean TV over log10 size by least squares, "
            "as many as the Bayesian information criterion asks for. Refinement begins where the steepest descent "
            "turns into a flatter one. `share` is the share of bootstrap resamples in which one follows; `slopes` are "
            "TV per decade of size.",
        },
        FEW,
    ),
    Result(
        "Nucleus recovery",
        "How large a subgraph must be for the top of the distribution to be in order.",
        ("nuclei",),
        ("nuclei",),
        {
            "nucleus at p": "The smallest set of top tokens that holds p percent of the probability.",
            "recovered": "When the nuclei of the full model and of the subgraph are equal, order included, at p and at "
            "every smaller one of 1, 5, 10, 20, 30, ... percent.",
            "median, quartiles": "Over inputs, of the smallest relative size at which it is recovered; 1 where only "
            "the full model has it. `only_by_the_whole` is the share of such inputs.",
        },
        FEW,
    ),
    Result(
        "Where it sits",
        "Which parts of the model the subgraphs are made of, beside what chance gives.",
        ("composition", "node_use", "gini"),
        ("composition", "node_use", "gini"),
        {
            "relative share": "The share of a part (heads, MLPs, a quarter of the depth) among the nodes of the "
            "subgraph, over its share among all nodes of the model. 1 is what chance gives. Quarter 1 is the earliest; "
            "layer l of n lies in quarter floor(4 l / n) + 1.",
            "use": "The share of inputs whose subgraph of a size keeps a node; for random-matched, of one draw.",
            "Lorenz curve": "The share of all use that the least used nodes have.",
            "Gini index": "Twice the area between the Lorenz curve and the diagonal: 0 when all nodes are used alike. "
            "One mask for all inputs has 1 - s / n_nodes; subgraphs drawn anew for every input (one draw of "
            "random-matched) have what chance gives.",
        },
        FEW,
    ),
    Result(
        "What it goes with",
        "Inputs that take more of the model, and what they have in common.",
        ("relations",),
        ("relations", "inputs"),
        {
            "computation density": "The area under an input's TV over log10(s / n_nodes), by trapezoids, closed by the "
            "full model with a TV of 0. Its unit is TV times decades of size.",
            "rank correlation (rho)": "Spearman's, over inputs, with the 95 % percentile interval of 1,000 bootstrap "
            "resamples, and a two-sided p-value from 9,999 permutations (so 0.0002 at the least).",
            "entropy": "Of the full model's next-token distribution, in nats.",
            "loss": "The full model's negative log-probability of the token that came, in nats.",
            "rarity": "Negative log-probability, in nats, of a token in the unigram distribution of the texts: of the "
            "token that came next (`next_rarity`), and of the last one that was read (`last_rarity`).",
            "context": "Tokens read before the scored position, the beginning token included.",
            "true entropy": "Of the embedded language's own next-token distribution, where the text is of it.",
        },
        "No correlation is defined; see the notes.",
    ),
    Result(
        "What the sparsest know",
        "Whether small subgraphs say more than how frequent tokens are.",
        ("unigram",),
        ("leaving", "unigram"),
        {
            "unigram": "The frequencies of tokens in the texts, the first token of each left out, with half a count "
            "more for every token of the vocabulary.",
            "KL from the unigram": "KL(unigram || subgraph), in nats, as the other is KL(full || subgraph).",
            "leaving": "The smallest relative size at which an input's subgraph is nearer to the full model than to "
            "the unigram: median and quartiles over inputs (line and shade in the figure).",
        },
        FEW,
    ),
    Result(
        "Across models",
        "Whether the same inputs are dense everywhere, and whether runs keep the same nodes.",
        ("across",),
        ("across", "overlap"),
        {
            "rank correlation of density": "Spearman's, over the inputs that both banks have: inputs are the same when "
            "the text that was read is. A matrix each for learned subgraphs, the norm's and random ones.",
            "overlap": "The sum over nodes of the smaller use of two mean masks, over the size: 1 when both use every "
            "node alike. Chance is the mean of 1,000 shuffles of the nodes of one; `by_norm` is the overlap of what "
            "the norm chooses. Of banks of the same model only.",
        },
        "This takes two banks: give --mask twice.",
    ),
    Result(
        "Token by token",
        "The density that each next token of a text takes.",
        ("by_token",),
        ("by_token",),
        {
            "colour": "The density of the input that ends before the token, over the largest of the bank; exact values "
            "show when a token is pointed at, and stand in the table.",
        },
        "This takes masks for every position of some texts: learn them with --data.positions each.",
    ),
    Result(
        "A subgraph, shown",
        "One input, the nodes kept for it, and what they make of it.",
        ("thoughts",),
        ("thoughts",),
        {
            "input": "That with the median density of its bank.",
            "maps": "Layers upwards, heads to the right and the MLP last. Of random-matched subgraphs, one draw.",
            "top tokens": "The most probable next tokens with their probabilities; blue ones are among the full "
            "model's own.",
        },
        "No input to show.",
    ),
)
