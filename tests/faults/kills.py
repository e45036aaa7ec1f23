"""SIGKILL at random moments of training, polish, evaluation and study."""

from pathlib import Path

import pandas as pd

from faults.bench import NOTHING, UP_TO_50_STEPS, Bench, Fault
from faults.processes import end, let_run, run_to_end, start, wait_for
from masklearn import cli

SECONDS_SUFFIX = "(s)"
"""How the names of columns of seconds end, which differ between any two runs."""


def of_runs(bench: Bench, times: int) -> Fault:
    """At random moments of a run and of the runs that resume it, up to five times in a row."""
    fault = Fault("SIGKILL at a random moment of training, evaluation and export", UP_TO_50_STEPS)
    return _of_runs(bench, times, fault)


def of_single_texts(bench: Bench, times: int) -> Fault:
    """The same, of a run that learns masks for every text, block after block."""
    return _of_runs(bench, times, Fault("the same, of a run in which every text has its own masks", UP_TO_50_STEPS))


def _of_runs(bench: Bench, times: int, fault: Fault) -> Fault:
    while fault.trials < times:
        with bench.folder() as folder:
            kills = 0
            for _ in range(bench.random.randint(1, 5)):
                process = start(bench.resume_flags(folder))
                let_run(process, bench.moment(0.05, 1.0))
                was_alive = process.kill()
                end(process)
                kills += was_alive
                if not was_alive:
                    break
            problems = bench.finish(folder)
            for _ in range(kills):
                fault.record(*problems)
    return fault


def of_polish(bench: Bench, times: int) -> Fault:
    """While a run polishes masks that texts share."""
    fault = Fault("SIGKILL while masks that texts share are polished", "the polish of one mask")
    return _after(bench, times, fault, "Discretising masks", 0.4)


def after_training(bench: Bench, times: int) -> Fault:
    """While a run evaluates, draws, writes and finishes its tracking."""
    fault = Fault("SIGKILL after training: while masks, figures and results are written, and W&B finishes", NOTHING)
    return _after(bench, times, fault, "Evaluating on", 0.3)


def _after(bench: Bench, times: int, fault: Fault, words: str, share: float) -> Fault:
    """At a random moment after the run printed some words, up to a share of a run's duration later."""
    for _ in range(times):
        with bench.folder() as folder:
            process = start(bench.resume_flags(folder))
            wait_for(lambda process=process: words in process.output(), process)
            let_run(process, bench.moment(0, share))
            process.kill()
            end(process)
            fault.record(*bench.finish(folder))
    return fault


def of_evaluation(bench: Bench, times: int) -> Fault:
    """At a random moment of `evaluate.py`, which makes a study of masks of single texts."""
    study = "--model.scope" in bench.flags
    fault = Fault(f"SIGKILL at a random moment of `evaluate.py`{', study and report included' if study else ''}")
    flags = ["--mask", str(bench.reference / "mask.safetensors"), "--track", "false"]
    undisturbed = bench.work / "evaluated"
    seconds = run_to_end([*flags, "--out", str(undisturbed)], cli.evaluate).seconds
    expected = written(undisturbed)
    assert "metrics.json" in expected and (not study or "report.html" in expected)
    for _ in range(times):
        with bench.folder() as out:
            process = start([*flags, "--out", str(out)], cli.evaluate)
            let_run(process, bench.random.uniform(0.1, 1.0) * seconds)
            process.kill()
            end(process)
            killed = written(out) if out.exists() else {}
            extra_files = "" if killed.keys() <= expected.keys() else f"left {set(killed) - set(expected)}"
            ended = run_to_end([*flags, "--out", str(out)], cli.evaluate)
            is_finished = "metrics.json" in killed and ended.one_line and "already exists and is kept" in ended.err
            failure = "" if is_finished or not ended.code else ended.err[-300:]
            fault.record(extra_files, failure, *_differences(written(out), expected))
    return fault


def written(folder: Path) -> dict[str, object]:
    """The files of a folder by name: content, or for figures and pages, which hold dates, whether they are complete."""
    files: dict[str, object] = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in (".csv", ".parquet"):
            table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
            files[name] = table[[column for column in table if not str(column).endswith(SECONDS_SUFFIX)]].to_json()
        elif path.suffix == ".json":
            files[name] = path.read_text()
        else:
            content = path.read_bytes().rstrip()
            endings = {".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF", ".html": b"</html>"}
            files[name] = content.endswith(endings.get(path.suffix, b""))
    return files


def _differences(files: dict[str, object], expected: dict[str, object]) -> list[str]:
    return [f"another {name}" for name in expected if files.get(name) != expected[name]]
