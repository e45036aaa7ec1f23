"""The bank of a run of several groups: its file, its groups, and the blocks that it is gathered from."""

import sys
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_groups import INPUTS

import masklearn as ml
from masklearn import evaluation
from masklearn.cli import train, train_cli
from masklearn.mask_file import ModelId
from masklearn.selection.polish import Step, visit_order
from masklearn.training.block_store import BlockStore

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def clean_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)


def bank(n_groups: int, n_sizes: int, graph: ml.NodeGraph) -> ml.Mask:
    order = torch.arange(graph.n_nodes)
    sizes = torch.arange(1, n_sizes + 1)
    mask = ((order + torch.arange(n_groups)[:, None, None]) % graph.n_nodes) < sizes[:, None]
    scores = torch.zeros(n_groups, 1, graph.n_nodes)
    return ml.Mask(mask, scores, sizes, graph, ModelId("m", None, "f"), tuple(f"text {i}" for i in range(n_groups)))


def test_reading_one_input_of_a_bank_leaves_the_rest_on_disk(tmp_path: Path) -> None:
    """Ten thousand inputs, twelve sizes and 1,056 nodes are 160 MB; one input's masks are kilobytes."""
    file = tmp_path / "mask.safetensors"
    bank(10_000, 12, ml.NodeGraph(32, 32)).save(file)
    process = psutil.Process()
    before = process.memory_info().rss
    mask = ml.Mask.load(file)
    one = mask["text 9999"].select(s=12)
    assert process.memory_info().rss - before < 20 * 2**20 < file.stat().st_size / 5
    assert one.sum() == 12
    assert one.nonzero()[0, 0] == (-9999) % 1056


@given(group=st.integers(-9, 8), s=st.integers(1, 4))
def test_groups_are_selected_by_name_or_index(group: int, s: int) -> None:
    mask = bank(9, 4, ml.NodeGraph(2, 3))
    assert torch.equal(mask[group].select(s), mask.mask[group, s - 1])
    assert torch.equal(mask.select(s, f"text {group % 9}"), mask.mask[group, s - 1])


def test_groups_and_sizes_that_a_bank_lacks_are_refused(tmp_path: Path) -> None:
    mask = bank(12, 4, ml.NodeGraph(2, 3))
    with pytest.raises(ml.UserError, match="no group 'x'; it has text 0, .* and 2 more"):
        mask["x"]
    with pytest.raises(ml.UserError, match="no group 12"):
        mask[12]
    with pytest.raises(ml.UserError, match="has 12 groups; name one, for example 'text 0'"):
        mask.select(3)
    with pytest.raises(ml.UserError, match="no masks for group 'x'"):
        mask.of(["text 1", "x"])
    assert torch.equal(mask.of(["text 3", "text 1"]).mask, mask.mask[[3, 1]])


@pytest.mark.parametrize("on_disk", [False, True])
def test_gathered_blocks_are_in_the_order_of_the_groups(tmp_path: Path, on_disk: bool) -> None:
    store, whole = BlockStore(tmp_path / "blocks" if on_disk else None), bank(5, 2, ml.NodeGraph(2, 3))
    for block, groups in enumerate(([4, 0], [2, 3, 1])):
        assert block not in store
        store.put(block, groups, {"mask": whole.mask[groups], "scores": whole.scores[groups]})
        assert block in store
    found = store.gather(2)
    assert torch.equal(found["mask"], whole.mask) and torch.equal(found["scores"], whole.scores)


def test_a_stopped_polish_resumes_from_its_last_whole_step(tmp_path: Path) -> None:
    store, steps = BlockStore(tmp_path), visit_order(2, from_all=False)

    def run_polish(initial: int, stop: int | None = None) -> tuple[list[Step], list[float]]:
        """Open one node per step and count the steps in `kl`. Returns the steps made and the counts."""
        masks, kl, made = torch.zeros(2, 1, 6, dtype=torch.bool), torch.zeros(2, 1), []
        masks[:, :, 5] = bool(initial)
        for step in store.resume_polish("polish-0", steps, masks, kl, torch.zeros(())):
            if len(made) == stop:
                break  # in the middle of a step
            masks[step.size_index, 0, steps.index(step)] = True
            kl[step.size_index] += 1
            made.append(step)
        assert (masks[:, 0, :5].sum() == 5) == (stop is None)
        return made, kl.flatten().tolist()

    assert run_polish(0, stop=2) == (steps[:2], [1, 1])
    assert run_polish(0, stop=1) == (steps[2:3], [2, 1])
    assert run_polish(0) == (steps[3:], [3, 2])
    assert run_polish(0) == ([], [3, 2])  # killed before its block was stored
    assert run_polish(1, stop=3) == (steps[:3], [2, 1])  # other initial masks: the polish starts again
    file = tmp_path / "polish-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    assert run_polish(1) == (steps, [3, 2])


def test_a_run_with_a_lost_block_refuses_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A block that was cut, changed or deleted. With the block restored, the run resumes."""
    monkeypatch.setattr(train_cli, "CHECKPOINT_INTERVAL", 3)
    command = [*INPUTS, "--data.limit", "15", "--model.steps", "8", "--trainer.enable_progress_bar", "false"]
    assert train([*command, "--run.dir", "run", "--trainer.max_steps", "20"]) == 2
    block, last = (Path("run/checkpoints") / name for name in ("blocks/block-000001.safetensors", "last.ckpt"))
    content, state = block.read_bytes(), last.read_bytes()
    resume = ["--config", "run/config.yaml", "--run.resume", "true", "--trainer.max_steps", "-1"]
    for damaged in (content[:40], content[:-1] + b"\x07", None):
        block.write_bytes(damaged) if damaged else block.unlink()
        capsys.readouterr()
        assert train(resume) == 2
        error = capsys.readouterr().err
        assert "block-000001.safetensors, cannot be read: " in error and "--run.dir" in error
        assert last.read_bytes() == state
    block.write_bytes(content)
    assert train(resume) == 0
    assert "Polish:" not in capsys.readouterr().out


def test_metrics_of_a_group_without_texts_are_none() -> None:
    own = torch.tensor([[[0.5, torch.nan]], [[0.25, torch.nan]]])  # KL and TV of one size and two groups
    found = evaluation.describe(bank(2, 1, ml.NodeGraph(2, 3)), [{"faithfulness": None}], own, {})
    assert found["groups"] == {"text 0": {"kl": [0.5], "tv": [0.25]}, "text 1": {"kl": [None], "tv": [None]}}
