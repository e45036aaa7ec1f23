"""Configs that would harm are refused before they are used, and messages stay one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import refused

from masklearn.cli.entry_points import printable
from masklearn.cli.parsing import require_complete, require_harmless_configs
from masklearn.cli.run_folder import CONFIG_FILE

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
HARMFUL = {
    "a bomb": (BOMB + "model: {sizes: *a11}\n", "expands to more than 10000 values"),
    "an alias of itself": ("model: &a {sizes: [*a]}\n", "expands to more than"),
    "a class of another library": ("trainer: {logger: {class_path: os.system}}\n", "line 1: os.system names code"),
    "a class in a list": ("trainer:\n  callbacks:\n  - class_path: subprocess.Popen\n", "line 3: subprocess.Popen"),
    "a class by its name alone": ("trainer: {callbacks: evil.Callback}\n", "evil.Callback names code"),
    "a function as an argument": (
        "trainer:\n  callbacks:\n    class_path: lightning.pytorch.callbacks.LambdaCallback\n"
        "    init_args: {on_fit_start: os.system}\n",
        "line 4: os.system",
    ),
    "a key twice": ("model: {steps: 3}\nmodel: {steps: 4}\n", "line 2: model is already set in line 1"),
    "a key twice further in": ("model:\n  steps: 3\n  lr: 1\n  steps: 4\n", "line 4: steps is already set in line 2"),
    "a key twice in a list": ("trainer:\n  callbacks:\n  - {a: 1, a: 2}\n", "line 3: a is already set in line 3"),
    "a key that is a list": ("model: {? [a, b] : 3}\n", "line 1: this key is not a name"),
    "no settings": ("- a\n", "has no settings"),
    "nothing": ("", "has no settings"),
    "a number": ("3\n", "has no settings"),
    "a tab": ("model:\n\tsteps: 3\n", "line 2"),
    "no end": ("model:\n  steps: [3\n", "line 2, column 10: this is not YAML"),
    "an unknown alias": ("model: *nobody\n", "line 1, column 8"),
    "a NUL": ("model: \x00\n", "this is not YAML"),
    "too many brackets": ("[" * 5000, "this is not YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_config_is_refused_before_it_is_used(name: str, tmp_path: Path) -> None:
    text, expected = HARMFUL[name]
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    message = refused(lambda: require_harmless_configs(["--model.steps", "3", "--config", str(path)]))
    assert "evil.yaml" in message
    assert expected in message


@pytest.mark.parametrize("way", ["--config {}", "--config={}", "-c {}", "-c{}", "-c={}"])
def test_every_way_to_give_a_config_is_checked(way: str, tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("trainer: {callbacks: evil.Callback}\n")
    assert "evil.Callback" in refused(lambda: require_harmless_configs(way.format(tmp_path / "evil.yaml").split()))


def test_harmful_files_of_sections_are_refused_too(tmp_path: Path) -> None:
    evil, bomb, twice = (tmp_path / name for name in ("evil.yaml", "bomb.yaml", "twice.yaml"))
    evil.write_text("callbacks: [{class_path: evil.Callback}]\n")
    bomb.write_text(BOMB)
    twice.write_text("steps: 3\nsteps: 4\n")
    nested = tmp_path / "nested.yaml"
    nested.write_text("trainer: {callbacks: evil.yaml}\n")
    commands = {
        "line 1: evil.Callback names code": ["--trainer", str(evil)],
        "expands to more than": [f"--model={bomb}"],
        "line 2: steps is already set": ["--model", str(twice)],
        "trainer.callbacks+ is the file": ["--trainer.callbacks+", str(evil)],
        "trainer.logger is the file": [f"--trainer.logger={evil}"],
        "line 1: evil.yaml is a file": ["--config", str(nested)],
    }
    for expected, args in commands.items():
        assert expected in refused(lambda args=args: require_harmless_configs(args))
    require_harmless_configs(["--data.path", str(evil), "--model", "{steps: 3}", "--run.dir", "x" * 5000])


def test_files_that_are_not_text_or_too_large_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("model: {lm: é}".encode("latin-1"))
    assert "this is not YAML" in refused(lambda: require_harmless_configs(["--config", str(tmp_path / "latin.yaml")]))
    (tmp_path / "large.yaml").write_bytes(b"a" * 2**21)
    assert "too many for a config file" in refused(
        lambda: require_harmless_configs(["--config", str(tmp_path / "large.yaml")])
    )


def test_the_configs_of_the_project_and_of_runs_are_accepted(tmp_path: Path) -> None:
    written = {
        "trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping"}], "precision": 1.5}
    }
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(written))
    project_configs = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
    assert project_configs
    for path in (tmp_path / CONFIG_FILE, *project_configs):
        before = path.read_bytes()
        require_harmless_configs(["--config", str(path)])  # raises if it is harmful
        assert path.read_bytes() == before


@pytest.mark.parametrize("given", [{"a": None}, {"a": 3}, {"a": {"b": None}}, {}, {"a": [1]}])
def test_null_is_refused_where_a_setting_has_a_default(given: dict[str, Any]) -> None:
    assert refused(lambda: require_complete(given, {"a": {"b": 1}})).startswith("a")
    require_complete({"a": {"b": 2}}, {"a": {"b": 1}})
    require_complete({"model": {"polish_budget": None}}, {"model": {"polish_budget": 2.0}})  # null is no limit


def test_a_printed_message_is_one_line_of_bounded_length() -> None:
    assert printable("a\nb\x1b[2Jc\u202ed") == "a b [2Jc d"
    assert len(printable("x" * 10**6)) < 1100
