"""Texts that the model cannot read: longer ones than its context, or with tokens that only its tokenizer has."""

from masklearn.data.datamodule import MaskData
from masklearn.errors import UserError
from masklearn.models import Layout


def require_readable(data: MaskData, layout: Layout) -> None:
    """Refuse texts that a model cannot read.

    Args:
        data: The texts, set up.
        layout: The model's layout.

    Raises:
        UserError: If a text is longer than the model's context, or has a token beyond its embedding.
    """
    data.require_context(layout.context)
    _require_known_tokens(data, layout.n_embeddings)


def _require_known_tokens(data: MaskData, n_embeddings: int) -> None:
    """Refuse texts with tokens beyond the model's embedding; padding, which no output depends on, becomes token 0.

    Args:
        data: The texts, set up.
        n_embeddings: Rows of the model's embedding.

    Raises:
        UserError: If a text has such a token; names the first.
    """
    if data.pad_id >= n_embeddings:
        data.pad_id = 0
    texts = data.parts["all"].encoded
    # the corrupted text may be another text of the source, so a token counts for the text itself first
    for tokens in ([text.ids for text in texts], [text.corrupted or [] for text in texts]):
        rows = zip(texts, tokens, strict=True)
        unknown = {text.row: max(ids) for text, ids in rows if max(ids, default=0) >= n_embeddings}
        if unknown:
            raise _unknown_tokens(data, unknown, n_embeddings)


def _unknown_tokens(data: MaskData, unknown: dict[int, int], n_embeddings: int) -> UserError:
    row, token = min(unknown.items())
    name = data.load_tokenizer().convert_ids_to_tokens(token)
    return UserError(
        f"{data.source}: {len(unknown)} texts have tokens that {data.lm} has no embedding for; the first is text "
        f"{row + 1} with {name!r}, token {token} of {n_embeddings}. They were added to the tokenizer alone: remove "
        "them from the texts, or give a model trained with them"
    )
