"""Small models and texts that every test may use; nothing is fetched."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share the cores by files
os.environ.pop("WANDB_MODE", None)
os.environ.pop("WANDB_API_KEY", None)
os.environ["NETRC"] = os.environ["WANDB_CONFIG_DIR"] = os.devnull  # nobody is logged in

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from masklearn.data import Batch
from masklearn.errors import UserError
from masklearn.masking import MaskedLM
from masklearn.objective import kl_divergence

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SMALL = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "60"),
    *("--model.budget", "lagrangian", "--model.family", "independent", "--model.lr", "0.8"),
    *("--model.steps", "60", "--model.sizes", "[4, 0.5, 30]"),
]
"""A run in seconds that has everything there is to track."""


def tiny_llama(seed: int = 0, layers: int = 3) -> PreTrainedModel:
    """Grouped KV, and a head width that is not hidden / heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def tiny_gpt2(seed: int = 0) -> PreTrainedModel:
    """Conv1D, biases everywhere, learned positions."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=50, n_embd=24, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    lm = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for name, parameter in lm.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return lm


@pytest.fixture(params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    return request.param()


@pytest.fixture
def masked_lm(lm: PreTrainedModel) -> MaskedLM:
    return MaskedLM(lm)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def everywhere(tokens: Tensor) -> Tensor:
    """Every position scored."""
    return torch.ones_like(tokens, dtype=torch.bool)


@pytest.fixture
def stories() -> Path:
    """The pretrained model and its texts that stand beside a checkout of the project."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this checkout: its pretrained model and texts are not part of the project")
    return SHARED


@dataclass
class Run:
    folder: Path
    output: str

    @property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / "metrics.json").read_text())


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One whole run, as a person starts it."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--run.dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Run(folder, done.stdout)


def refused(action: Callable[[], object]) -> str:
    """What a user is told of a mistake that an action meets."""
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


GROUPS = [7, 3, 9]
"""Groups of a run that a judge knows, in this order."""


def texts() -> list[Batch]:
    """Four texts of three groups, of different lengths, in two batches."""
    generator = torch.Generator().manual_seed(0)
    lengths, groups = [[6, 4], [5, 3]], [[3, 7], [9, 3]]
    batches = []
    for i, (long, group) in enumerate(zip(lengths, groups, strict=True)):
        ids = torch.randint(3, 50, (2, max(long)), generator=generator)
        real = torch.arange(max(long)) < torch.tensor(long)[:, None]
        batches.append(Batch(ids, real, real, torch.tensor([2 * i, 2 * i + 1]), torch.tensor(group)))
    return batches


def by_hand(masked_lm: MaskedLM, mask: Tensor, group: int) -> float:
    """The mean KL of a mask over a group's scored positions, text by text, with whole logits."""
    found = []
    for batch in texts():
        for ids, real, own in zip(batch.input_ids, batch.real, batch.group.tolist(), strict=True):
            if own == group:
                ids, everywhere = ids[real][None], torch.ones(1, int(real.sum()), dtype=torch.bool)
                full = masked_lm.unembed(masked_lm.full(ids, everywhere)).log_softmax(-1)
                masked = masked_lm.unembed(masked_lm(ids, everywhere, mask.float()[None, None])[0]).log_softmax(-1)
                found.append(kl_divergence(full, masked))
    return torch.cat(found).mean().item()
