"""Shards of a run: which process may use its folder, on which blocks shards agree, and which device a run is on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import refused, tiny_gpt2
from filelock import Timeout
from jsonargparse import Namespace

from masklearn.cli.run_folder import RunFolder
from masklearn.cli.train_cli import TrainCLI
from masklearn.cli.trainer_flags import require_one_process, uses_ranks
from masklearn.models import placement
from masklearn.training.block_store import BlockStore


def claim(path: Path, shard: int, agree: Callable[[], object] = lambda: None) -> RunFolder:
    """A folder of which one of two shards is claimed."""
    folder = RunFolder(path, f"{shard + 1}/2")
    folder.claim_shard("{model: {}, data: {}}", {"model": {}, "data": {}}, shard, agree)
    return folder


def test_a_stopped_shard_goes_on_as_a_shard_and_no_run_takes_over_those_at_work(tmp_path: Path) -> None:
    first, second, run = claim(tmp_path, 0), claim(tmp_path, 1), RunFolder(tmp_path)
    assert first.resume_command.endswith("--run.resume true --run.shard 1/2")
    assert run.resume_command.endswith("--run.resume true")
    first.release()
    assert "another run is using" in refused(run.acquire)  # the second shard is at work
    claim(tmp_path, 0).release()  # what was refused has left no lock
    second.release()
    run.acquire()
    run.release()


def test_shards_agree_on_the_blocks_of_the_first_while_no_other_can_begin(tmp_path: Path) -> None:
    found, store = list[tuple[int, int]](), BlockStore(tmp_path / "blocks")

    def agree(groups_per_block: int) -> None:
        with pytest.raises(Timeout):
            RunFolder(tmp_path).lock.acquire(timeout=0)
        found.append(store.settle_step_shape((groups_per_block, 2)))

    shards = [claim(tmp_path, shard, lambda n=3 + shard: agree(n)) for shard in range(2)]
    assert found == [(3, 2), (3, 2)]
    for shard in shards:
        shard.release()


@pytest.mark.parametrize("groups", [([0, 1, 2], [2, 3]), ([0, 1], [3, 4])])
def test_blocks_that_overlap_or_leave_groups_out_are_refused(groups: tuple[list[int], list[int]]) -> None:
    store = BlockStore()
    for block, members in enumerate(groups):
        store.put(block, members, {"kl": torch.zeros(len(members))})
    assert "overlap or leave groups out" in refused(lambda: store.gather(2))


def test_folders_to_merge_may_begin_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["train.py"])
    cli = TrainCLI(["--model.scope", "input", "--run.dir", "~/first", "--run.merge", "[~/second, third]"])
    assert cli.folder.path == tmp_path / "first"
    assert cli.merged_folders == [str(tmp_path / "second"), "third"]


@pytest.mark.parametrize(("devices", "several"), [(1, False), ([0], False), ([3], False), (2, True), ([0, 1], True)])
def test_a_list_of_one_device_names_the_device_of_one_process(devices: int | list[int], several: bool) -> None:
    trainer = Namespace(devices=devices, num_nodes=1, strategy="auto")
    assert uses_ranks(trainer) == several
    if several:
        assert "leave --trainer.devices out" in refused(lambda: require_one_process(trainer, "auto"))
    else:
        require_one_process(trainer, "auto")


def test_the_first_gpu_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "is_placed", lambda lm: True)
    monkeypatch.setattr(placement, "input_device", lambda lm: torch.device("cuda", 0))
    message = refused(lambda: placement.move_model(tiny_gpt2(), torch.device("cuda", 1)))
    assert "--trainer.accelerator cuda --trainer.devices '[0]'" in message
