"""Text of the page: the study's results, and the definition of every quantity in their figures and tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One result of the study: a section of the page."""

    title: str
    question: str
    """What the result answers, in a sentence."""
    figures: tuple[str, ...]
    """Figures of the section, by their `StudyFigure.result`; the first is the section's anchor."""
    tables: tuple[str, ...]
    """Tables of the section."""
    definitions: dict[str, str]
    """By term in figures and tables."""
    no_figure: str
    """Why there may be no figure."""


KIND_DEFINITIONS = {
    "learned": "The learned masks: for each size, the nodes that training and polish found in lowering the KL from the "
    "full model. Of edges or positions: those that training found for each text, without polish.",
    "inverse": "All nodes except those of the learned mask, plotted at the size of the learned mask. Of edges or "
    "positions: all others of the text, plotted at the size of the bank's own subgraph.",
    "s-trace": "The edges that s-Trace keeps: grown backward from the output by importance (docs/edges.md).",
    "random": "Nodes drawn uniformly: the mean of 10 draws per size, which are the same for all inputs. Of edges: "
    "grown backward from the output at random. Of positions: drawn uniformly. Of both: the mean of 4 independent draws "
    "per size and input, which are not nested.",
    "random-matched": "Nodes drawn uniformly among subgraphs with as many heads and as many MLPs as the learned one: "
    "the mean of 10 draws per size and input.",
    "norm": "The nodes with the largest share of the L1 norm of all contributions that are added to the residual "
    "stream at the same point, averaged over tokens. This is a node-level analogue of the edge importance of s-Trace, "
    "not the score of the paper, which ranks edges. Of positions: the share at the position's own token.",
    "band, low, high": "95 % interval of 9,999 bootstrap resamples of the inputs, or of whole texts where these have "
    "several inputs: percentiles, expanded to what Student's t distribution says of so few. None with fewer than 10.",
}
"""Kinds of subgraphs, and their intervals."""
TOO_FEW_SIZES = "No figure: curves, densities and phases need at least three sizes."
"""Why figures against size are missing."""

PAGE_SECTIONS = (
    Result(
        "Density curve",
        "How far are subgraphs of growing size from the full model?",
        ("curve",),
        ("phases", "curve"),
        {
            "TV distance": "Total variation distance between two next-token distributions: half the sum over the "
            "vocabulary of the absolute differences of their probabilities. 0: equal; 1: disjoint. Mean over inputs.",
            "KL": "KL(full model || subgraph) in nats, mean over inputs.",
            "fraction": "Nodes kept divided by all nodes of the model, heads and MLPs alike; or edges or positions "
            "kept divided by all those of the text.",
            **KIND_DEFINITIONS,
            "head in place": "The smallest size at which at least half of the inputs recover the full model's most "
            "probable token, the head of its distribution.",
            "refinement begins": "A continuous piecewise linear function with one to three segments is fitted by least "
            "squares to mean TV over log10(s / n_nodes), of edges without sizes that cannot hold a path from a token "
            "to the output; the Bayesian information criterion chooses the number of segments. Refinement begins where "
            "the steepest descent ends and a flatter segment follows. `share` is the share of bootstrap resamples with "
            "such a segment, `in_order` that of resamples in which it follows the head; `slopes` are in TV per decade "
            "of size.",
        },
        TOO_FEW_SIZES,
    ),
    Result(
        "Nucleus recovery",
        "How large must a subgraph be to reproduce the order of the full model's top tokens?",
        ("nuclei",),
        ("nuclei",),
        {
            "nucleus at p": "The smallest set of top tokens that holds p percent of the probability; at 1 percent, the "
            "top token, if it has as much.",
            "recovered": "A nucleus is recovered if full model and subgraph have the same tokens in the same order, "
            "in this nucleus and in every smaller one of 1, 5, 10, 20, 30, ... percent. An input counts if half or "
            "more of its scored positions do.",
            "median, quartiles": "Over inputs, of the smallest relative size at which the nucleus is recovered; 1 if "
            "only the full model recovers it. `only_by_the_whole` is the share of those inputs.",
        },
        TOO_FEW_SIZES,
    ),
    Result(
        "Which nodes subgraphs keep",
        "Which parts of the model do subgraphs keep, compared with random subgraphs?",
        ("composition", "node_use", "gini"),
        ("composition", "node_use", "gini"),
        {
            "relative share": "The share of a part of the model (heads, MLPs, a quarter of the depth) among the nodes "
            "of the subgraph, divided by its share among all nodes. Its expectation for uniformly drawn nodes is 1. "
            "Of edges: those of the attention, of MLPs and of the residual stream, by the layer of their target. "
            "`excess` is the relative share minus that of the random control, input by input. "
            "Quarter 1 holds the earliest layers; layer l of n belongs to quarter floor(4 l / n) + 1.",
            "use": "The share of inputs whose subgraph of a given size keeps the node; where inputs share masks, the "
            "share of masks. For random-matched: of one draw per input.",
            "Lorenz curve": "The share of all use that falls on the least used nodes, against their share of all "
            "nodes.",
            "Gini index": "Twice the area between the Lorenz curve and the diagonal; 0 if all nodes are used equally. "
            "One mask for all inputs that uses k of n nodes has 1 - k / n. The curve of random-matched is what "
            "independent random subgraphs for each input have by chance.",
        },
        TOO_FEW_SIZES,
    ),
    Result(
        "What density correlates with",
        "Which properties of an input correlate with its density?",
        ("relations",),
        ("relations", "inputs"),
        {
            "computation density": "The area under an input's TV distance as a function of log10 of the relative size, "
            "by trapezoids, from the smallest size to the full model, whose TV is 0: `density_...`, in TV times "
            "decades. Divided by these decades it is `normalized_density_...`, the mean TV over log size, from 0 to 1, "
            "which figures and verdicts use. Of edges, the latter leaves out sizes that cannot hold a path from a "
            "token to the output in half of the texts.",
            "partial": "The rank correlation of what ranks of entropy, both rarities and context length leave of the "
            "two, as far as these vary (`given`).",
            "rank correlation (rho)": "Spearman's rank correlation over inputs, with its 95 % bootstrap interval and a "
            "two-sided p-value from 9,999 permutations (0.0002 at the least), or from the bootstrap where texts have "
            "several inputs, since these are alike.",
            "entropy": "Entropy of the full model's next-token distribution, in nats.",
            "loss": "Negative log-probability of the next token of the text under the full model, in nats.",
            "rarity": "Negative log-probability of a token in the unigram distribution of the texts, in nats: of the "
            "next token of the text (`next_rarity`), or of the last token of the context (`last_rarity`). Tokens that "
            "begin a text are not counted, so a beginning token that is the whole context is among the rarest.",
            "context": "Tokens of the context, the beginning token included.",
            "true entropy": "Entropy of the language from which the text was sampled, in nats; known for the embedded "
            "language only.",
        },
        "No figure: no correlation is defined. See the notes.",
    ),
    Result(
        "Small subgraphs and token frequencies",
        "Do small subgraphs predict more than token frequencies?",
        ("unigram",),
        ("leaving", "unigram"),
        {
            "unigram": "The frequencies of tokens in the texts, without the first token of each text, interpolated "
            "with a uniform distribution by the share of distinct tokens (Witten and Bell 1991). The table banks has "
            "the size of this corpus.",
            "KL from the unigram": "KL(unigram || subgraph) in nats, compared with KL(full model || subgraph). "
            "`unigram_tv` is the TV distance from the unigram, `top_rarity` the negative log-probability in it of the "
            "subgraph's most probable token, in nats.",
            "nearer to the unigram": "The share of inputs whose KL from the unigram is below that from the full model; "
            "of random subgraphs, the mean share of the draws. `excess` is the share minus that of the random control, "
            "input by input. A flat output is nearer to the unigram than to a peaked full model, whatever chose the "
            "subgraph.",
            "leaving": "The smallest relative size at which an input's subgraph is nearer to the full model than to "
            "the unigram: median and quartiles over inputs (dotted line and shaded range in the figure).",
        },
        TOO_FEW_SIZES,
    ),
    Result(
        "Comparison of banks",
        "Are the same inputs dense in other models, and do different runs keep the same nodes?",
        ("across",),
        ("across", "overlap"),
        {
            "rank correlation of density": "Spearman's rank correlation over the inputs that two banks share. Two "
            "inputs are the same if their text is. One matrix for each kind of subgraph. `partial` is the "
            "correlation given both models' entropy and token rarities; `excess` is that of the banks' own "
            "subgraphs minus that of random ones, with a paired bootstrap interval.",
            "overlap": "The sum over nodes of the smaller use of two mean masks, divided by the size: 1 if both use "
            "every node equally often. `by_chance` is expected if the nodes of one mask are shuffled; `by_norm` "
            "is the overlap of the subgraphs of the kind norm. Only banks of the same model are compared.",
        },
        "No figure: a comparison needs two banks. Pass --mask twice.",
    ),
    Result(
        "Density of each token",
        "How large a density does the prediction of each token of a text have?",
        ("by_token",),
        ("prompt_answer", "by_token"),
        {
            "colour": "The density of the input that ends before the token, divided by the largest density of the "
            "bank. Point at a token to see its density; the table lists all. Tokens of answers are underlined.",
            "prompt_answer": "Mean density at the tokens of prompts and of answers, where texts have both; the "
            "`difference` is that within texts, with its interval and p-value over resampled texts.",
        },
        "No figure: it needs a mask for every position of a text. Learn the masks with --data.positions each.",
    ),
    Result(
        "The subgraphs of one input",
        "Which nodes are kept for one input, and which next tokens do they predict?",
        ("thoughts",),
        ("thoughts",),
        {
            "input": "The input with the median density of its bank.",
            "maps": "Layers upwards, heads to the right, the MLP in the last column. For random-matched: one draw.",
            "top tokens": "The most probable next tokens with their probabilities. Blue tokens are among the full "
            "model's top tokens.",
        },
        "No figure: no input was chosen.",
    ),
)
"""The sections of the page, in order."""
