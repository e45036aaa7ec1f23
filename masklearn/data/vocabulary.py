"""Texts whose tokens the model has no embedding for: tokens that were added to its tokenizer alone."""

from masklearn.data.datamodule import MaskData
from masklearn.errors import UserError


def require_known_tokens(data: MaskData, n_embeddings: int) -> None:
    """Refuse texts with tokens beyond the model's embedding; padding, which no output depends on, becomes token 0.

    Args:
        data: The texts, set up.
        n_embeddings: Rows of the model's embedding.

    Raises:
        UserError: If a text has such a token; names the first.
    """
    if data.pad_id >= n_embeddings:
        data.pad_id = 0
    unknown = {
        text.row: next(token for token in (*text.ids, *(text.corrupted or ())) if token >= n_embeddings)
        for text in data.parts["all"].encoded
        if max(*text.ids, *(text.corrupted or ())) >= n_embeddings
    }
    if unknown:
        row, token = min(unknown.items())
        name = data.load_tokenizer().convert_ids_to_tokens(token)
        raise UserError(
            f"{data.source}: {len(unknown)} texts have tokens that {data.lm} has no embedding for; the first is text "
            f"{row + 1} with {name!r}, token {token} of {n_embeddings}. They were added to the tokenizer alone: remove "
            "them from the texts, or give a model trained with them"
        )
