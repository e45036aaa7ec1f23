"""Rediscovery: a mask is learned again, with another seed or on other texts, and kept in a folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from masklearn.ablation import Ablation
from masklearn.data import MaskData
from masklearn.data.digests import texts_digest
from masklearn.errors import UserError
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.resampled_texts import (
    bootstrapped,
    can_be_halved,
    half,
    in_other_words,
    shuffled,
    with_order,
)
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.progress import ProgressBar, no_bar
from masklearn.training.cost import learning_tokens
from masklearn.training.learner import MaskLearner
from masklearn.training.settings import default_draws, default_steps
from masklearn.version import masklearn_version

SEED, BOOTSTRAP, HALF, PARAPHRASE, SHUFFLED = "seed", "bootstrap", "half", "paraphrase", "shuffled"
STABILITY_SOURCES = (SEED, BOOTSTRAP, HALF, PARAPHRASE)
"""Sources of variation that stability is measured over."""
STEPS_DIVISOR, MIN_STEPS = 3, 40
"""Steps of a rediscovery: a third of the run's, and at least 40."""


@dataclass(frozen=True)
class Variant:
    """One rediscovery."""

    source: str
    """What differs from the run."""
    number: int
    """Number among those of the source, from 1."""
    texts: Callable[[MaskData], MaskData]
    """Makes the texts of the run those to learn on."""
    seed: int

    @property
    def name(self) -> str:
        """Such as `bootstrap-2`."""
        return f"{self.source}-{self.number}"


def variants(plan: EvidencePlan, data: MaskData, paraphrased: MaskData | None) -> list[Variant]:
    """The rediscoveries of a plan.

    Args:
        plan: Their numbers. If it leaves halves open, there is one of each if there are texts for it.
        data: The texts of the run.
        paraphrased: The texts in other words, if there are any.
    """
    found = list[Variant]()
    for i in range(plan.seeds):
        seed = plan.seed + 1000 * (i + 1)
        found.append(Variant(SEED, i + 1, lambda data, seed=seed: with_order(data, seed), seed))
    for i in range(plan.bootstraps):
        found.append(Variant(BOOTSTRAP, i + 1, lambda data, i=i: bootstrapped(data, plan.seed + i), plan.seed))
    n_halves = plan.halves if plan.halves is not None else int(can_be_halved(data))
    for i in range(2 * n_halves):
        draw, second = plan.seed + i // 2, bool(i % 2)
        found.append(Variant(HALF, i + 1, lambda data, n=draw, second=second: half(data, n, second), plan.seed))
    if paraphrased is not None:
        found.append(Variant(PARAPHRASE, 1, lambda data: in_other_words(data, paraphrased), plan.seed))
    return found


def shuffled_variant(plan: EvidencePlan) -> Variant:
    """The same search on texts whose tokens are shuffled: a control, not a source of variation."""
    return Variant(SHUFFLED, 1, lambda data: shuffled(data, plan.seed), plan.seed)


@dataclass(frozen=True)
class Rediscoverer:
    """Learns masks again under the settings of their run, but for the length of the search."""

    masked_lm: MaskedLM
    mask: Mask
    data: MaskData
    """The texts of the run."""
    plan: EvidencePlan
    folder: Path | None
    """Where rediscovered masks are kept, and looked for; None keeps none."""
    bar: ProgressBar = no_bar
    callbacks: tuple[Callable[[], Callback], ...] = ()
    """Make the callbacks of every trainer."""

    def settings(self, seed: int) -> dict[str, Any]:
        """The settings of a learner."""
        of_run: Mapping[str, Any] = self.mask.config.get("model", {})
        n_nodes = self.mask.graph.n_nodes
        steps_of_run = of_run.get("steps") or default_steps(False, n_nodes)
        changed = {
            "lm": self.mask.model.lm,
            "revision": self.mask.model.revision,
            "sizes": self.mask.sizes.tolist(),
            "steps": self.plan.steps or max(MIN_STEPS, steps_of_run // STEPS_DIVISOR),
            "draws": of_run.get("draws") or default_draws(False, n_nodes),
            "polish_budget": self.plan.polish_budget,
            "seed": seed,
        }
        settings = {**of_run, **changed}
        return settings | {"temperature": tuple(settings.get("temperature", (1.0, 0.5)))}

    @property
    def learning_tokens(self) -> float:
        """Tokens that the learning of one rediscovery scores."""
        learner, n_groups = MaskLearner(**self.settings(0)), len(self.data.groups.names)
        blocks = self.data.block_plan(n_groups, learner.schedule.steps)
        return learning_tokens(self.data, blocks, learner.settings.rows_per_text, range(n_groups))

    def find(self, variant: Variant, masked_lm: MaskedLM | None = None) -> Mask:
        """The masks of a rediscovery: from the folder, if they are there, or learned now.

        Args:
            variant: The rediscovery.
            masked_lm: A model to learn them on in place of the run's.

        Raises:
            UserError: If the texts do not allow it.
            KeyboardInterrupt: If the user stops it; finished rediscoveries are kept.
        """
        masked_lm = masked_lm or self.masked_lm
        file, key = self._file(variant), self._key(variant)
        if file and (kept := _load(file, key, masked_lm.layout.fingerprint)):
            return kept
        mask = replace(self._learn(key["model"], variant.texts(self.data), masked_lm), config=key)
        if file:
            mask.save(file)
        return mask

    def is_kept(self, variant: Variant) -> bool:
        """Whether the folder has the masks of a rediscovery on the run's model."""
        file = self._file(variant)
        return bool(file and _load(file, self._key(variant), self.masked_lm.layout.fingerprint))

    def _file(self, variant: Variant) -> Path | None:
        return self.folder / f"{variant.name}.safetensors" if self.folder else None

    def _key(self, variant: Variant) -> dict[str, Any]:
        """What the masks of a rediscovery depend on, besides the model."""
        of_variant = {"name": variant.name, "seed": self.plan.seed, "texts": texts_digest(variant.texts(self.data))}
        data = self.mask.config.get("data", {})
        version = {"dtype": str(self.masked_lm.lm.dtype), "masklearn": masklearn_version()}
        return {"model": self.settings(variant.seed), "data": data, "variant": of_variant, **version}

    def _learn(self, settings: dict[str, Any], data: MaskData, masked_lm: MaskedLM) -> Mask:
        learner = MaskLearner(**settings)
        learner.measures_gates = False  # nobody reads its stages
        ablation = Ablation("resample") if settings.get("ablation") == "resample" else Ablation()
        learner.use(MaskedLM(masked_lm.lm, ablation))
        learner.plan_blocks(data)
        is_cuda = masked_lm.device.type == "cuda"
        trainer = Trainer(
            max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, limit_val_batches=0,
            accelerator="cuda" if is_cuda else "cpu", devices=[masked_lm.device.index or 0] if is_cuda else 1,
            callbacks=[make() for make in self.callbacks],
        )  # fmt: skip
        try:
            trainer.fit(learner, datamodule=data)
        except SystemExit:  # a stop between two steps
            raise KeyboardInterrupt from None
        if trainer.global_step < learner.plan.total_steps:
            raise KeyboardInterrupt
        return learner.discretize()


def _load(file: Path, key: dict[str, Any], fingerprint: str) -> Mask | None:
    """The masks in a file, if they are those of these settings and this model."""
    if not file.is_file():
        return None
    try:
        mask = Mask.load(file)
        mask.check()
    except UserError:  # damaged: they are learned again
        return None
    same = mask.model.fingerprint == fingerprint and mask.config == _as_json(key)
    return mask if same else None


def _as_json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {key: _as_json(inner) for key, inner in value.items()}
    return [_as_json(inner) for inner in value] if isinstance(value, list | tuple) else value
