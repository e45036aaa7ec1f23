"""Small models and texts for all tests; nothing is downloaded."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest runs one file on each core
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
from faults.processes import run_to_end
from filelock import FileLock
from forked import PER_INPUT, SHARED_MASK
from hypothesis import HealthCheck, settings
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from masklearn.data import Batch
from masklearn.edges import EdgeLM
from masklearn.errors import UserError
from masklearn.masking import MaskedLM
from masklearn.models import Layout
from masklearn.objective import kl_divergence

settings.register_profile("slow machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if "CI" not in os.environ:  # there Hypothesis has such a profile of its own
    settings.load_profile("slow machine")
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SMALL = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "24"),
    *("--model.budget", "lagrangian", "--model.family", "independent", "--model.lr", "0.8"),
    *("--model.steps", "60", "--model.sizes", "[4, 0.5, 30]", "--model.polish", "1"),
    *("--trainer.log_every_n_steps", "1"),
]
"""Flags of a run that takes seconds and logs every metric there is."""


def tiny_llama(seed: int = 0, layers: int = 3) -> PreTrainedModel:
    """A model with grouped key-value heads, and a head width other than hidden size / heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def copying_llama() -> Any:
    """Two layers, one head, width 2: attention is uniform and copies its normed source.

    Token 3 is embedded as (1, 1) and token 4 as (1, -1), both of root mean square 1.
    """
    config = LlamaConfig(
        vocab_size=8, hidden_size=2, intermediate_size=2, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, head_dim=2, rms_norm_eps=1e-12, tie_word_embeddings=False,
    )  # fmt: skip
    lm = LlamaForCausalLM(config).eval().requires_grad_(False)
    for block in lm.model.layers:
        for name in ("q_proj", "k_proj"):
            getattr(block.self_attn, name).weight.zero_()
        for name in ("v_proj", "o_proj"):
            getattr(block.self_attn, name).weight.copy_(torch.eye(2))
    for token, vector in ((3, [1.0, 1.0]), (4, [1.0, -1.0])):
        lm.model.embed_tokens.weight[token] = torch.tensor(vector)
    return lm


def without_mlps(lm: Any) -> None:
    """Let the MLPs of a Llama add nothing."""
    for block in lm.model.layers:
        block.mlp.down_proj.weight.zero_()


def tiny_gpt2(seed: int = 0) -> PreTrainedModel:
    """A model with Conv1D, random biases and learned positions."""
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
    """All positions scored, shape (rows, seq)."""
    return torch.ones_like(tokens, dtype=torch.bool)


@pytest.fixture
def stories() -> Path:
    """The folder beside a checkout that holds a pretrained model and its texts; the test is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this checkout: its pretrained model and texts are not part of the project")
    return SHARED


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no figures, which takes a second of each: for tests of something else."""
    monkeypatch.setattr("masklearn.cli.drawing.can_draw", lambda: False)


@dataclass
class Run:
    """A finished run: its folder and what it printed."""

    folder: Path
    output: str

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        return json.loads((self.folder / "metrics.json").read_text())


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Run:
    """A run of `train.py` in a process of its own, made once for all tests of all workers."""
    base = tmp_path_factory.getbasetemp()
    runs = (base if worker_id == "master" else base.parent) / "runs"
    folder, output = runs / "a run", runs / "output.txt"
    with FileLock(f"{runs}.lock"):
        if not output.exists():  # no other worker has finished the run
            command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--run.dir", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            output.write_text(done.stdout)
    return Run(folder, output.read_text())


def _by_one_process(flags: list[str], name: str, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of a run in a single process, made once for all tests of all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            assert run_to_end([*flags, "--trainer.accelerator", "cpu", "--run.dir", str(folder)]).code == 0
    return folder


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of a run in a single process with the flags `PER_INPUT`."""
    return _by_one_process(PER_INPUT, "per input", tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def one_process_shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of a run in a single process with the flags `SHARED_MASK`."""
    return _by_one_process(SHARED_MASK, "shared mask", tmp_path_factory, worker_id)


def refused(action: Callable[[], object]) -> str:
    """The message of the user error that an action raises."""
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


GROUPS = [7, 3, 9]
"""Groups of a run that a scorer is made for, in this order."""


def texts() -> list[Batch]:
    """Four texts of three groups, of different lengths, in two batches."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for i, (lengths, group) in enumerate([([6, 4], [3, 7]), ([5, 3], [9, 3])]):
        ids = torch.randint(3, 50, (2, max(lengths)), generator=generator)
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        batches.append(Batch(ids, real, real, torch.tensor([2 * i, 2 * i + 1]), torch.tensor(group)))
    return batches


def by_hand(masked_lm: MaskedLM, mask: Tensor, group: int) -> float:
    """The mean KL of a mask over a group's scored positions, one text at a time, from all logits at once."""
    kl = []
    for batch in texts():
        for ids, real, group_of_text in zip(batch.input_ids, batch.real, batch.group.tolist(), strict=True):
            if group_of_text == group:
                ids, everywhere = ids[real][None], torch.ones(1, int(real.sum()), dtype=torch.bool)
                full = masked_lm.unembed(masked_lm.full(ids, everywhere)).log_softmax(-1)
                masked = masked_lm.unembed(masked_lm(ids, everywhere, mask.float()[None, None])[0]).log_softmax(-1)
                kl.append(kl_divergence(full, masked))
    return torch.cat(kl).mean().item()


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a user reads after a mistake."""
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def llama() -> EdgeLM:
    """A tiny Llama under gates on its edges."""
    return EdgeLM(Layout.of(tiny_llama(layers=2)))
