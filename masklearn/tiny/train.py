"""Train the embedded model on its language, evaluate it, and write weights, tokenizer and model card.

python -m masklearn.tiny.train                      # train the committed model again
python -m masklearn.tiny.train --family gpt2 --layers 2 --heads 4 --out small   # train another one
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from lightning import LightningModule, Trainer, seed_everything
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from masklearn.tiny import MODEL_FOLDER, language, tasks

Family = Literal["llama", "gpt2"]
"""Hugging Face architectures that can be trained."""
CONTEXT_TOKENS = 128
"""Context length of the model, longer than any text of the language."""
ROW_TOKENS = 96
"""Tokens in a training row."""
HELD_OUT_SEED = 10**6
"""Seed of the evaluation texts, different from the seeds used in training."""
SOLVED_PROBABILITY = 0.9
"""A prompt is solved if its allowed answers together have at least this probability."""


def build_tokenizer() -> FastTokenizer:
    """Build the tokenizer: one token for each word of the vocabulary."""
    words = language.vocabulary()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    begin = (language.BEGIN, words.index(language.BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{language.BEGIN} $A", special_tokens=[begin]
    )
    return FastTokenizer(
        tokenizer_object=tokenizer, bos_token=language.BEGIN, eos_token=language.END, pad_token=language.PAD
    )


def build_model(family: Family, layers: int, heads: int, width: int) -> PreTrainedModel:
    """Build a randomly initialised model with the vocabulary of the language."""
    words = language.vocabulary()
    special_ids: dict[str, Any] = {
        "bos_token_id": words.index(language.BEGIN),
        "eos_token_id": words.index(language.END),
        "pad_token_id": words.index(language.PAD),
    }
    if family == "gpt2":
        no_dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        gpt2 = GPT2Config(
            vocab_size=len(words), n_layer=layers, n_head=heads, n_embd=width, n_positions=CONTEXT_TOKENS,
            **no_dropout, **special_ids,
        )  # fmt: skip
        return GPT2LMHeadModel(gpt2)
    llama = LlamaConfig(
        vocab_size=len(words), num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width,
        intermediate_size=2 * width, max_position_embeddings=CONTEXT_TOKENS, **special_ids,
    )  # fmt: skip
    return LlamaForCausalLM(llama)


class TrainingRows(IterableDataset[Tensor]):
    """Endless rows of `ROW_TOKENS` token ids: texts concatenated, the first one from its beginning."""

    def __init__(self, tokenizer: FastTokenizer, seed: int) -> None:
        self.token_ids, self.seed = tokenizer.get_vocab(), seed

    def __iter__(self) -> Iterator[Tensor]:
        rng = random.Random(self.seed)
        while True:
            row: list[str] = []
            while len(row) < ROW_TOKENS:
                row += [language.BEGIN, *language.write(rng)]
            yield torch.tensor([self.token_ids[token] for token in row[:ROW_TOKENS]])


class LanguageModelTraining(LightningModule):
    """Next-token training with AdamW and a one-cycle learning rate."""

    def __init__(self, lm: PreTrainedModel, lr: float) -> None:
        super().__init__()
        self.lm, self.lr = lm, lr

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Mean next-token loss of some rows of tokens, in nats."""
        loss = self.lm(input_ids=rows, labels=rows).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, with warm-up and decay over all steps."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.9, 0.98), weight_decay=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class ModelQuality:
    """How well a model predicts the language."""

    loss: float
    """Mean negative log-likelihood of held-out texts, in nats per token."""
    entropy: float
    """Mean entropy of the true next-token distribution at the same tokens, in nats per token."""
    solved: dict[str, float]
    """Per task, the share of held-out prompts that are solved (see `SOLVED_PROBABILITY`)."""


@torch.no_grad()
def measure(lm: PreTrainedModel, tokenizer: FastTokenizer, n: int = 1000, seed: int = HELD_OUT_SEED) -> ModelQuality:
    """Evaluate a model on `n` held-out texts and `n` held-out prompts of each task."""
    lm.eval()
    total_nll, total_entropy, n_tokens = 0.0, 0.0, 0
    token_ids = tokenizer.get_vocab()
    rng = random.Random(seed)
    for _ in range(n):
        tokens = language.write(rng)
        row = torch.tensor([[token_ids[token] for token in (language.BEGIN, *tokens)]])
        total_nll += cross_entropy(lm(input_ids=row).logits[0, :-1], row[0, 1:], reduction="sum").item()
        total_entropy += sum(language.entropy(choice) for choice in islice(language.truth(tokens), len(tokens)))
        n_tokens += len(tokens)
    solved = {}
    for task in tasks.TASKS:
        n_solved = 0
        for prompt in islice(tasks.prompts(task, seed), n):
            logits = lm(**tokenizer(prompt.text, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
            answers = [token_ids[answer] for answer in prompt.answers]
            n_solved += logits.softmax(-1)[answers].sum().item() >= SOLVED_PROBABILITY
        solved[task] = n_solved / n
    return ModelQuality(total_nll / n_tokens, total_entropy / n_tokens, solved)


def model_card(quality: ModelQuality, settings: dict[str, Any], seconds: float) -> str:
    """Write the model card: how the model was trained, in how many seconds, and how well it predicts."""
    flags = " ".join(f"--{name} {value}" for name, value in settings.items())
    rows = "\n".join(f"| `{task}` solved | {share:.1%} |" for task, share in quality.solved.items())
    return f"""---
license: apache-2.0
library_name: transformers
---
# The embedded model

A small causal language model of the language in `masklearn/tiny/language.py`, whose true next-token distribution is
known at every token. Trained in {seconds / 60:.0f} minutes on {torch.get_num_threads()} cores by

    python -m masklearn.tiny.train {flags}

Measured by the same script on texts and prompts that were not used in training:

| figure | value |
|---|---|
| held-out loss (nats per token) | {quality.loss:.4f} |
| true entropy at the same tokens | {quality.entropy:.4f} |
| loss over entropy | {quality.loss / quality.entropy:.4f} |
{rows}

A prompt is solved if the answers that the language allows have at least {SOLVED_PROBABILITY:.0%} of the probability.
"""


def train(
    out: Path = MODEL_FOLDER,
    family: Family = "llama",
    layers: int = 4,
    heads: int = 8,
    width: int = 128,
    steps: int = 4000,
    batch_size: int = 32,
    lr: float = 3e-3,
    seed: int = 0,
) -> ModelQuality:
    """Train a model of the embedded language and write it, its tokenizer and its card to a folder.

    Args:
        out: Folder to write to.
        family: Hugging Face architecture.
        layers: Number of layers.
        heads: Attention heads per layer.
        width: Hidden size.
        steps: Optimiser steps.
        batch_size: Rows of 96 tokens per step.
        lr: Peak learning rate.
        seed: Seed of weights and texts.
    """
    settings = {key: value for key, value in locals().items() if key != "out"}
    seed_everything(seed, verbose=False)
    tokenizer, lm = build_tokenizer(), build_model(family, layers, heads, width)
    start = time.monotonic()
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, gradient_clip_val=1.0, logger=False, enable_checkpointing=False
    )
    trainer.fit(LanguageModelTraining(lm, lr), DataLoader(TrainingRows(tokenizer, seed), batch_size=batch_size))
    seconds = time.monotonic() - start
    quality = measure(lm, tokenizer)
    lm.save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = model_card(quality, settings, seconds)
    (out / "README.md").write_text(card, encoding="utf-8")
    print(card)
    return quality


if __name__ == "__main__":
    auto_cli(train)
