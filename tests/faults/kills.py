"""SIGKILL, at any moment of anything."""

from pathlib import Path

import pandas as pd

from faults.bench import FIFTY, NOTHING, Bench, Fault
from faults.processes import end, let_run, start, wait_for, whole
from masklearn import cli

MEASURED = "(s)"
"""How columns of seconds are called, which no two runs have in common."""


def of_runs(bench: Bench, times: int) -> Fault:
    """At random moments of a run and of what goes on with it, up to five times in a row."""
    fault = Fault("SIGKILL at a random moment of training, evaluation and export", FIFTY)
    return _of_runs(bench, times, fault)


def of_single_texts(bench: Bench, times: int) -> Fault:
    """The same, of a run that learns masks for every text, block after block."""
    return _of_runs(bench, times, Fault("the same, of a run in which every text has its own masks", FIFTY))


def _of_runs(bench: Bench, times: int, fault: Fault) -> Fault:
    while fault.tried < times:
        with bench.folder() as folder:
            kills = 0
            for _ in range(bench.random.randint(1, 5)):
                process = start(bench.again(folder))
                let_run(process, bench.moment(0.05, 1.0))
                alive = process.kill()
                end(process)
                kills += alive
                if not alive:
                    break
            wrong = bench.finish(folder)
            for _ in range(kills):
                fault.scorer(*wrong)
    return fault


def of_polish(bench: Bench, times: int) -> Fault:
    """While a run polishes the masks that its texts share."""
    fault = Fault("SIGKILL while masks that texts share are polished", "the polish of one mask")
    return _after(bench, times, fault, "Cutting masks", 0.4)


def after_training(bench: Bench, times: int) -> Fault:
    """While a run evaluates, draws, writes and ends its tracking."""
    fault = Fault("SIGKILL after training: while masks, figures and results are written, and W&B ends", NOTHING)
    return _after(bench, times, fault, "Evaluating on", 0.3)


def _after(bench: Bench, times: int, fault: Fault, word: str, share: float) -> Fault:
    """At a random moment after something was said, up to a share of a whole run later."""
    for _ in range(times):
        with bench.folder() as folder:
            process = start(bench.again(folder))
            wait_for(lambda process=process: word in process.said(), process)
            let_run(process, bench.moment(0, share))
            process.kill()
            end(process)
            fault.scorer(*bench.finish(folder))
    return fault


def of_evaluation(bench: Bench, times: int) -> Fault:
    """Of `evaluate.py`, which makes the study and its report where every text has masks of its own."""
    study = "--model.scope" in bench.flags
    fault = Fault(f"SIGKILL at a random moment of `evaluate.py`{', study and report included' if study else ''}")
    flags = ["--mask", str(bench.reference / "mask.safetensors"), "--track", "false"]
    alone = bench.work / "evaluated"
    seconds = whole([*flags, "--out", str(alone)], cli.evaluate).seconds
    expected = written(alone)
    assert "metrics.json" in expected and (not study or "report.html" in expected)
    for _ in range(times):
        with bench.folder() as out:
            process = start([*flags, "--out", str(out)], cli.evaluate)
            let_run(process, bench.random.uniform(0.1, 1.0) * seconds)
            process.kill()
            end(process)
            begun = written(out) if out.exists() else {}
            whole_files = "" if begun.keys() <= expected.keys() else f"left {set(begun) - set(expected)}"
            ended = whole([*flags, "--out", str(out)], cli.evaluate)
            done = "metrics.json" in begun and ended.one_line and "is there already, and kept" in ended.err
            fault.scorer(
                whole_files, "" if done or not ended.code else ended.err[-300:], *_apart(written(out), expected)
            )
    return fault


def written(folder: Path) -> dict[str, object]:
    """What lies in a folder, by name; of figures and pages that they are whole, since they hold dates and seconds."""
    found: dict[str, object] = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in (".csv", ".parquet"):
            table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
            found[name] = table[[column for column in table if not str(column).endswith(MEASURED)]].to_json()
        elif path.suffix == ".json":
            found[name] = path.read_text()
        else:
            content = path.read_bytes().rstrip()
            ends = {".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF", ".html": b"</html>"}
            found[name] = content.endswith(ends.get(path.suffix, b""))
    return found


def _apart(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    return [f"another {name}" for name in expected if found.get(name) != expected[name]]
