"""`masklearn.learn`: from a model and texts to masks with their metrics, with the defaults of the command line."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning import Callback, Trainer

from masklearn import evaluation
from masklearn.ablation import AblationName
from masklearn.api.bank import LearnedBank
from masklearn.api.texts import as_data, settings_of, split_settings
from masklearn.data import MaskData
from masklearn.data.source_settings import MODEL_KEYS
from masklearn.errors import UserError
from masklearn.mask_file import Mask
from masklearn.models import EMBEDDED, ModelOrName, TokenizerOrName, dtype_name, input_device, name_of
from masklearn.training.learner import MaskLearner
from masklearn.training.progress import Progress, phase_bars
from masklearn.training.trainer import quiet_lightning, trainer_defaults

IN_MEMORY = "texts given in Python"
"""Entry of a mask's config that says that its texts are in no file."""


def learn(
    lm: ModelOrName = EMBEDDED,
    texts: Any = None,
    *,
    sizes: Sequence[int | float] | str = (0.1, 0.2, 0.35, 0.5, 0.75),
    scope: str = "dataset",
    ablation: AblationName = "zero",
    tokenizer: TokenizerOrName | None = None,
    progress: bool = True,
    **settings: Any,
) -> LearnedBank:
    """Learn masks, and evaluate them on held-out texts.

    Args:
        lm: A loaded model, which is frozen in place, or its name: see `MaskLearner`.
        texts: A list of strings, or of rows with the columns of a file; a `datasets.Dataset`; a table of pandas; a
            file; or a `MaskData`. By default those of the embedded generator, for the embedded model.
        sizes: Nodes to keep: counts, or fractions of all nodes below 1; or `log:12` for 12 log-spaced sizes.
        scope: Which texts share masks: `dataset`, `input` or `column:NAME`.
        ablation: What closed nodes emit.
        tokenizer: The model's tokenizer, or the name of a model that has it; by default loaded with the model's name.
        progress: Whether to show progress.
        settings: Further settings of `MaskLearner` and of `MaskData`, by name; `seed` is that of both.

    Returns:
        The masks and their metrics. With scope `input` these are metrics of every text under its own masks.

    Raises:
        UserError: If the model, the texts or a setting are not valid or do not fit together.
    """
    shared = {"scope": scope, "sizes": sizes, "ablation": ablation}
    if isinstance(texts, MaskData):
        shared["scope"] = texts.scope if scope == "dataset" else scope
    for_learner, for_data = split_settings(settings | shared)
    with quiet_lightning():
        learner = MaskLearner(lm, **for_learner)
        for_data |= {name: for_learner[name] for name in MODEL_KEYS if name in for_learner}
        data = as_data(texts, lm if isinstance(lm, str) else name_of(lm), tokenizer, for_data)
        mask = replace(_fit(learner, data, progress), config=_config(learner, data))
        batches = data.loader("test", by_length=True)
        rows, by_group = evaluation.evaluate(learner.masked_lm, mask, batches, bar=learner.bar)
    results = evaluation.describe(mask, rows, by_group, mask.config["data"])
    return LearnedBank(mask, learner.masked_lm, data, results, evaluation.texts_in_words(data), learned_on=data)


@torch.enable_grad()
def _fit(learner: MaskLearner, data: MaskData, progress: bool) -> Mask:
    """Learn masks and make them discrete; gradients are as the caller has set them again when it is done."""
    trainer = _trainer(learner, progress)
    data.prepare_data()
    data.setup("fit")
    learner.load()
    learner.masked_lm.move(trainer.strategy.root_device)
    notice = learner.plan_blocks(data)
    if progress:
        warning = evaluation.implausible_answers(learner.masked_lm, data)
        for line in filter(None, (data.preview, *data.notices, notice, warning)):
            print(line, flush=True)
        learner.bar = phase_bars(sys.stdout)
    try:
        trainer.fit(learner, datamodule=data)
    except SystemExit:  # Lightning's answer to Ctrl-C and to a notebook's stop button
        raise KeyboardInterrupt from None
    if trainer.global_step < learner.plan.total_steps:
        raise UserError(f"stopped at step {trainer.global_step} of {learner.plan.total_steps}")
    return learner.discretize()


def _trainer(learner: MaskLearner, progress: bool) -> Trainer:
    """A trainer with the defaults of the command line, which writes nothing; on the device of a loaded model."""
    settings = trainer_defaults()
    lm: Any = learner.settings.lm
    if not isinstance(lm, str) and (device := input_device(lm)).type == "cuda":
        settings |= {"accelerator": "cuda", "devices": [device.index or 0]}
    callbacks: list[Callback] = [Progress(refresh_rate=settings["log_every_n_steps"])] if progress else []
    return Trainer(
        **settings,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        limit_val_batches=0,
        callbacks=callbacks,
    )


def _config(learner: MaskLearner, data: MaskData) -> dict[str, Any]:
    """The settings that the masks depend on, as in a mask file of the command line."""
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in learner.hparams.items()}
    model = settings | {"lm": name_of(learner.masked_lm.lm), "dtype": dtype_name(learner.masked_lm.lm)}
    in_memory = {"texts": IN_MEMORY} if data.source.given is not None else {}
    return {"model": model, "data": settings_of(data), **in_memory}
