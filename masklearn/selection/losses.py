"""The losses of masked models on a batch: the KL at every scored position, or the loss of every text's answers."""

from typing import NamedTuple

import torch
from torch import Tensor

from masklearn.data import Batch, MaskData
from masklearn.errors import UserError
from masklearn.masking import MaskedLM
from masklearn.objective import ObjectiveName, answer_loss, chunked_kl, chunks, log_probabilities


class Losses(NamedTuple):
    """Losses of K masked models."""

    values: Tensor
    """In nats, shape (K, losses)."""
    inputs: Tensor
    """Index in the batch of the input of every loss, shape (losses,)."""


def losses(
    objective: ObjectiveName,
    masked_lm: MaskedLM,
    batch: Batch,
    full: Tensor | None,
    masked: Tensor,
    inverse_temperature: float = 1.0,
) -> Losses:
    """The losses of masked models on a batch, differentiable.

    Args:
        objective: What is compared.
        masked_lm: The model.
        batch: The inputs.
        full: The full model's last hidden states at the scored positions, shape (positions, width); for `kl` only.
        masked: Those of K masked models, shape (K, positions, width).
        inverse_temperature: See `chunked_kl`; for `kl` only.
    """
    if objective == "kl":
        assert full is not None
        return Losses(chunked_kl(full, masked, masked_lm.unembed, inverse_temperature), batch.input_of_positions)
    inputs = batch.contrasted if objective == "logit-diff" else batch.answered
    if inputs is None:
        inputs = answered(objective, batch).nonzero()[:, 0]
    if batch.answers is None or not len(inputs):
        return Losses(masked[:, :0, 0].float(), inputs)
    hidden = masked[:, batch.before_answers[inputs]]
    right, wrong = batch.answers[inputs], None if batch.wrong is None else batch.wrong[inputs]
    parts = [
        answer_loss(
            objective,
            log_probabilities(hidden[:, part], masked_lm.unembed),
            right[part],
            wrong if wrong is None else wrong[part],
        )
        for part in chunks(hidden[0], len(hidden), masked_lm.unembed)
    ]
    return Losses(torch.cat(parts, 1), inputs)


def losses_per_input(objective: ObjectiveName, batch: Batch) -> Tensor:
    """How many losses every input of a batch has, shape (inputs,)."""
    return batch.scored.sum(1) if objective == "kl" else answered(objective, batch).long()


def answered(objective: ObjectiveName, batch: Batch) -> Tensor:
    """Which inputs have the answers that an objective needs, boolean of shape (inputs,)."""
    needed = (batch.answers, batch.wrong) if objective == "logit-diff" else (batch.answers,)
    found = torch.ones(len(batch.input_ids), dtype=torch.bool, device=batch.input_ids.device)
    for tokens in needed:
        found = found & (torch.zeros_like(found) if tokens is None else (tokens >= 0).any(-1))
    return found


def require_answers(objective: ObjectiveName, data: MaskData) -> None:
    """Check that every group has answers to learn and to select masks by.

    Args:
        objective: What masks minimise.
        data: The texts, set up.

    Raises:
        UserError: If the objective needs answers, and a group has none.
    """
    if objective == "kl":
        return
    kinds = "right and wrong answers" if objective == "logit-diff" else "answers"
    for split in ("train", "selection"):
        texts, with_answers = data.parts[split], set[int]()
        for text, group in zip(texts.encoded, texts.groups, strict=True):
            if text.answers and (text.wrong or objective != "logit-diff"):
                with_answers.add(group)
        if lacking := sorted({*texts.groups} - with_answers):
            of = f" of group {data.groups.names[lacking[0]]!r}" if len(data.groups.names) > 1 else ""
            raise UserError(
                f"model.objective {objective} needs {kinds}, and the {split} texts{of} of {data.source} have none. "
                "Name their columns (--data.answer_column, --data.wrong_answer_column), or use --model.objective kl"
            )
