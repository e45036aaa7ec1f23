"""Mask files on the hub, here a local fake of its HTTP interface, and in folders."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import wandb
from conftest import refused
from huggingface_hub import constants

import masklearn as ml
from masklearn.hub import card
from masklearn.mask_file import ModelId

REPO, COMMIT = "me/my-masks", "0" * 40


class FakeHub(BaseHTTPRequestHandler):
    """One repository in memory: it is made, gets files in one commit, and gives them back."""

    files: ClassVar[dict[str, bytes]] = {}
    tokens: ClassVar[set[str | None]] = set()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.tokens.add(self.headers.get("Authorization"))
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.send({"error": "Invalid user token"}, 401)
        elif self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.send({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{REPO}/commit/{COMMIT}"
            self.send({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.send({"url": f"http://{self.headers['Host']}/{REPO}", "id": REPO, "warnings": [], "errors": []})

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if "/resolve/" not in self.path or name not in self.files:
            self.send({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        content = self.files[name]
        etag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self.send(content, headers=etag)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def mask() -> ml.Mask:
    """A bank of two sizes, one of which was measured."""
    graph = ml.NodeGraph(2, 3)
    masks = torch.tensor([[[0, 1, 0, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 1, 0]]], dtype=torch.bool)
    metrics = [{"s": 4, "kl": 0.12345, "tv": 0.5, "top1": 0.75}]
    config = {"model": {"sizes": [2, 4]}}
    return ml.Mask(masks, torch.zeros(1, 1, 8), torch.tensor([2, 4]), graph, ModelId("a/model", None, "f"),
                   config=config, metrics=metrics)  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[FakeHub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(FakeHub, "files", {})
    yield FakeHub
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_bank_goes_to_the_hub_and_comes_back(mask: ml.Mask, hub: type[FakeHub], tmp_path: Path) -> None:
    assert mask.push_to_hub(REPO, token="hf_right").endswith(REPO)
    assert set(hub.files) == {"mask.safetensors", "config.json", "README.md"}
    mask.save(tmp_path / "mask.safetensors")
    assert hub.files["mask.safetensors"] == (tmp_path / "mask.safetensors").read_bytes()
    assert json.loads(hub.files["config.json"]) == mask.config
    back = ml.Mask.from_pretrained(REPO)
    assert torch.equal(back.mask, mask.mask)
    assert back.metrics == mask.metrics


def test_the_card_says_what_the_bank_is_and_how_to_load_it(mask: ml.Mask) -> None:
    text = card(mask, REPO)
    assert "| 2 | 25% | 1 | 1 |  |  |  |" in text
    assert "| 4 | 50% | 3 | 1 | 0.1235 | 0.5 | 0.75 |" in text
    assert f'ml.Mask.from_pretrained("{REPO}")' in text
    assert "mask.select(s=4)" in text
    assert 'ml.load_lm("a/model")' in text
    assert "nodes best reproduce the whole model's next-token distributions" in text
    given = card(replace(mask, config={}), REPO)
    assert "not learned by masklearn" in given and "best reproduce" not in given
    by_answers = card(replace(mask, config={"model": {"objective": "logit-diff"}}), REPO)
    assert "(logit-diff)" in by_answers and "best reproduce" not in by_answers
    of_branch = card(replace(mask, model=ModelId("a/model", "step1000", "f")), REPO)
    assert 'ml.load_lm("a/model", revision="step1000")' in of_branch
    assert text.split("```")[-2].strip().splitlines() == ["1  ··■  ·", "  0  ■■·  ■"]


def test_the_card_names_no_folder_of_this_machine(mask: ml.Mask, tmp_path: Path) -> None:
    """The hub refuses a base model that is not on it."""
    text = card(replace(mask, model=ModelId(str(tmp_path / "my-model"), None, "f")), REPO)
    assert "base_model: a/model" in card(mask, REPO)
    assert "base_model" not in text
    assert "# Masks of my-model" in text
    assert str(tmp_path) not in text
    assert "resampled(corrupted_ids)" in card(replace(mask, ablation=ml.Ablation("resample")), REPO)


def test_a_wrong_token_and_an_absent_repository_are_one_line(mask: ml.Mask, hub: type[FakeHub]) -> None:
    for action in (
        lambda: mask.push_to_hub(REPO, token="hf_wrong"),
        lambda: ml.Mask.from_pretrained("me/other", token="hf_right"),
    ):
        message = refused(action)
        assert "hf auth login" in message
        assert "\n" not in message
    assert not hub.files


def test_without_a_network_folders_still_open(mask: ml.Mask, tmp_path: Path) -> None:
    mask.save(tmp_path / "run" / "mask.safetensors")
    assert torch.equal(ml.Mask.from_pretrained(tmp_path / "run").mask, mask.mask)
    assert "has no mask.safetensors" in refused(lambda: ml.Mask.from_pretrained(tmp_path))
    for action in (lambda: mask.push_to_hub(REPO, token="hf_right"), lambda: ml.Mask.from_pretrained(REPO)):
        assert "the network" in refused(action)


# --- artifacts of W&B -------------------------------------------------------------------------------------------------


class FakeApi:
    """W&B's interface to what runs have logged: one artifact, a folder on the disk."""

    folder: ClassVar[Path]
    asked: ClassVar[list[str]] = []

    def artifact(self, path: str) -> "FakeApi":
        self.asked.append(path)
        if "/mask-" not in path:
            raise wandb.errors.CommError(f"artifact {path} not found")
        return self

    def download(self, root: str) -> str:
        shutil.copytree(self.folder, root, dirs_exist_ok=True)
        return root


def test_an_artifact_is_a_mask_in_one_call(mask: ml.Mask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a login, or without such an artifact, one line says so."""
    message = refused(lambda: ml.Mask.from_wandb("mask-a:latest"))
    assert "no login found" in message and "wandb login" in message
    mask.save(tmp_path / "artifact" / "mask.safetensors")
    monkeypatch.setattr(FakeApi, "folder", tmp_path / "artifact", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "Api", FakeApi)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert torch.equal(ml.Mask.from_wandb("mask-a", tmp_path / "kept").mask, mask.mask)
    assert torch.equal(ml.Mask.from_wandb("me/other/mask-a:v3").mask, mask.mask)
    assert FakeApi.asked == ["mine/mask-a:latest", "me/other/mask-a:v3"]
    assert (tmp_path / "kept" / "mask.safetensors").exists()
    assert "not found" in refused(lambda: ml.Mask.from_wandb("me/mine/other:v1"))
