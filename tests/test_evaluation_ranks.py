"""Evaluations on several devices: the numbers of one, and one line for what cannot be divided."""

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import GROUPS, one_line, texts, tiny_llama
from faults.processes import end, run_to_end
from forked import evaluate, on_ranks, run_ranks, start_ranks, train
from studies import resample_little

from masklearn import cli, ranks
from masklearn.cli import evaluate_command, evidence_command
from masklearn.data import Batch
from masklearn.errors import UserError, WriteError
from masklearn.evidence.together import compute_together
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.progress import no_bar
from masklearn.selection.attribution import norm
from masklearn.selection.baselines import Baseline, rank_scorer, subgraphs_of_ranks

QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
OF_TEXTS = ["--data.task", "names", "--data.limit", "2", "--data.positions", "random", "--model.sizes", "[0.1, 0.3]"]
GUIDED = "[random, norm, attribution, single-ablation]"


@pytest.fixture(scope="module")
def text_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Banks of edges and of positions, of two texts each."""
    folder = tmp_path_factory.mktemp("texts")
    for unit, flags in {"edges": ["--model.method", "s-trace"], "positions": ["--model.steps", "1"]}.items():
        args = ["--model.graph", unit, *flags, *OF_TEXTS, *QUIET, "--run.dir", str(folder / unit)]
        assert run_to_end(args, train).code == 0
    return [folder / "edges", folder / "positions"]


def metrics(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text())


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a study, without the time that it took."""
    found = {file.name: pd.read_csv(file) for file in (folder / "tables").glob("*.csv")}
    found |= {file.name: pd.read_parquet(file) for file in (folder / "tables").glob("*.parquet")}
    return {
        name: table.drop(columns=[column for column in table if "(s)" in str(column)]) for name, table in found.items()
    }


def test_shared_masks_and_their_baselines_are_evaluated_as_by_one_process(
    one_process_shared: Path, tmp_path: Path
) -> None:
    args = ["--mask", str(one_process_shared), "--baselines", GUIDED, "--out"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run_to_end([*args, str(one)], evaluate)
    first, other = run_ranks(2, [*args, str(two)], evaluate)
    assert alone.code == 0 and alone.out.replace(str(one), str(two)) == first and not other
    expected, found = pd.json_normalize(metrics(one)["sizes"]), pd.json_normalize(metrics(two)["sizes"])
    assert "controls.attribution.kl" in expected
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9)


def test_a_study_of_single_texts_is_that_of_one_process(
    one_process: Path, text_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nodes, edges and positions, the last two with fewer texts than ranks; equal bit for bit."""
    monkeypatch.setattr("masklearn.cli.study_command.can_draw", lambda: False)
    resample_little(monkeypatch)
    args = ["--mask", *map(str, (one_process, *text_runs)), "--baselines", "[attribution]", "--track", "false"]
    one, three = tmp_path / "one", tmp_path / "three"
    alone = run_to_end([*args, "--out", str(one)], evaluate)
    first, *others = run_ranks(3, [*args, "--out", str(three)], evaluate)
    assert alone.code == 0, alone.err
    assert "Study made" in first and not any(others)
    assert metrics(three) == metrics(one)
    expected, found = tables(one), tables(three)
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)


def test_evidence_is_that_of_one_process(one_process_shared: Path, tmp_path: Path) -> None:
    """Of seven searches one rank makes more than the other, and nothing of them waits for a process."""
    args = [
        *("--mask", str(one_process_shared), "--evidence", "true", "--track", "false"),
        *("--plan.seeds", "2", "--plan.bootstraps", "2", "--plan.halves", "0", "--plan.draws", "40"),
        *("--plan.steps", "2", "--plan.polish_budget", "0.01", "--plan.texts", "4", "--plan.pairs", "3"),
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run_to_end([*args, "--out", str(one)], evaluate)
    first, other = run_ranks(2, [*args, "--out", str(two)], evaluate)
    assert alone.code == 0 and "Written after" in first and not other
    found, expected = (json.loads((folder / "evidence.json").read_text()) for folder in (two, one))
    assert found | {"seconds": 0} == expected | {"seconds": 0}
    files = [sorted(path.name for path in folder.rglob("*.safetensors")) for folder in (one, two)]
    assert files[0] == files[1] and len(files[0]) == 7


def parts_that_are_computed() -> list[int]:
    """Which of five parts, the third of which fails, this rank computes; none of them sees another process."""
    computed = list[int]()

    def compute(part: int) -> None:
        computed.append(part)
        assert ranks.count() == 1 and ranks.gathered(part) == [part]
        assert not torch.distributed.is_initialized()  # as Lightning and torchmetrics ask
        if part == 2:
            raise UserError("no such text")

    compute_together([partial(compute, part) for part in range(5)], no_bar)
    assert ranks.count() > 1 or not computed
    return computed


def test_ranks_take_every_part_once() -> None:
    assert sorted(part for computed in on_ranks(2, parts_that_are_computed) for part in computed) == [0, 1, 2, 3, 4]


def test_a_part_that_cannot_be_kept_ends_it_at_once() -> None:
    def computed_until_the_disk_is_full() -> list[int]:
        computed = list[int]()

        def compute(part: int) -> None:
            computed.append(part)
            raise WriteError("no space left")

        with pytest.raises(WriteError):
            compute_together([partial(compute, part) for part in range(5)], no_bar)
        return computed

    assert sorted(part for found in on_ranks(2, computed_until_the_disk_is_full) for part in found) == [0, 1]


def test_a_signal_stops_a_process_that_waits_for_another() -> None:
    def waits() -> str:
        store = ranks._store()
        if ranks.rank() == 0:
            store.wait(["interrupted"])  # the other one waits meanwhile
            return "went on"

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            ranks.meet()
        store.set("interrupted", "")
        return "interrupted"

    assert on_ranks(2, waits) == ["went on", "interrupted"]


def test_a_single_process_computes_parts_as_they_are_needed() -> None:
    assert on_ranks(1, parts_that_are_computed) == [[]]


def chosen_by_ranks() -> list[Any]:
    """Baselines of a bank of two groups, and a score on two texts that share masks; each rank's answer."""
    torch.manual_seed(0)
    masked_lm = MaskedLM(tiny_llama())
    graph, sizes = masked_lm.graph, torch.tensor([2, 5])
    names = tuple(map(str, GROUPS[:2]))
    bank: Any = type(
        "Bank", (), {"graph": graph, "sizes": sizes, "groups": names, "mask": torch.zeros(2, 2, graph.n_nodes)}
    )

    def of(groups: Any) -> list[Batch]:
        kept = [(batch, torch.isin(batch.group, torch.tensor(list(groups)))) for batch in texts()]
        return [batch.select(mask) for batch, mask in kept if mask.any()]

    scorer = rank_scorer(masked_lm, of, GROUPS[:2], "kl")
    baselines: list[Baseline] = ["norm", "attribution", "greedy"]
    found = [subgraphs_of_ranks(name, bank, scorer).tolist() for name in baselines]
    shared = rank_scorer(masked_lm, of, [3], "kl")
    assert shared is not None and shared.shared == (ranks.count() > 1)
    return [found, norm(shared).flatten().tolist()]


def test_baselines_do_not_depend_on_the_number_of_ranks() -> None:
    """Three ranks, of which one has no group; and fewer texts in a batch than ranks."""
    ((masks, score),) = on_ranks(1, chosen_by_ranks)
    for others, its_score in on_ranks(3, chosen_by_ranks):
        assert others == masks and its_score == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize(
    ("owner", "name", "flags", "kept"),
    [
        (evaluate_command, "_evaluate_all", [], "Nothing has been written"),
        (evidence_command, "compute_together", ["--evidence", "true"], "Finished parts of the evidence are kept"),
    ],
    ids=["evaluation", "evidence"],
)
def test_a_rank_that_fails_is_named_and_all_end(
    owner: object, name: str, flags: list[str], kept: str, one_process_shared: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*args: Any) -> None:
        if ranks.rank() == 1:
            raise RuntimeError("CUDA error: unspecified launch failure")
        ranks.gathered(None)

    monkeypatch.setattr(owner, name, fail)
    args = ["--mask", str(one_process_shared), *flags, "--out", str(tmp_path / "out")]
    first, second = map(end, start_ranks(2, args, evaluate))
    assert first.one_line and "error: rank 1 (" in first.err and "the device failed" in first.err
    assert f"{kept}. Go on with: the same command" in first.err
    assert second.code == 2 and "error" not in second.err.lower()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--devices", "0"], "devices is 0; it must be at least 1: --devices 1"),
        (["--devices", "2", "--num_nodes", "-1"], "num_nodes is -1; it must be at least 1"),
        (["--evidence", "true", "--devices", "2"], "cannot be done from Python. Run it in a terminal"),
        (["--device_map", "auto", "--num_nodes", "2"], "the map leave out --num_nodes"),
        (["--devices", "2"], "cannot be done from Python. Run it in a terminal"),
    ],
)
def test_what_cannot_be_divided_is_one_line(
    flags: list[str], line: str, one_process_shared: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["evaluate.py"])
    assert cli.evaluate(["--mask", str(one_process_shared), *flags]) == 2
    assert line in one_line(capsys)


def test_a_run_with_a_device_map_is_named(
    one_process_shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = Mask.load(one_process_shared / "mask.safetensors")
    mask.config["model"]["device_map"] = "auto"
    mask.save(tmp_path / "mask.safetensors")
    assert cli.evaluate(["--mask", str(tmp_path), "--devices", "2"]) == 2
    assert f"model.device_map, in the run of {tmp_path}/mask.safetensors, is auto, which spreads" in one_line(capsys)


def test_more_devices_than_there_are_is_one_line(
    one_process_shared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"is_available": True, "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert cli.evaluate(["--mask", str(one_process_shared), "--devices", "4"]) == 2
    line = one_line(capsys)
    assert line.startswith("error: --devices 4: You requested gpu: [0, 1, 2, 3]") and "only has: [0]" in line
