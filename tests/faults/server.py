"""A fake W&B server: as much as a run needs, in a process that can be frozen or killed."""

import gzip
import json
import os
import re
import signal
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "a" * 40
"""A key of valid form."""


class Server:
    """Answers as W&B does to a valid key, or to an expired one.

    Args:
        expired: Whether every key has expired.
    """

    def __init__(self, expired: bool = False) -> None:
        handler = type("Answers", (_Handler,), {"expired": expired})
        listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{listening.server_port}"
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            listening.serve_forever()
        listening.server_close()
        self.alive = True

    def freeze(self) -> None:
        """Stop answering; connections are still accepted."""
        os.kill(self.pid, signal.SIGSTOP)

    def drop(self) -> None:
        """Stop listening."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.alive = False

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a run that is logged in to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    expired = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        if self.expired:
            self._answer(401, {"error": "user is not logged in"})
        else:
            self._answer(200, self._graphql(json.loads(body)) if self.path == "/graphql" else {})

    do_GET = do_PUT = do_POST  # noqa: N815

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        variables = request.get("variables") or {}
        return {"data": answer(operation[1] if operation else "", variables, f"http://{self.headers['Host']}")}

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client has gone
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def answer(operation: str, variables: dict[str, Any], url: str) -> dict[str, Any]:
    """W&B's answer to a GraphQL operation."""
    entity = {"id": "1", "name": "somebody"}
    if operation == "Viewer":
        return {
            "viewer": {"id": "1", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        }
    if operation == "UpsertBucket":
        project = {"id": "1", "name": "masklearn", "entity": entity}
        bucket = {"id": "1", "name": variables.get("name"), "displayName": "run", "config": "{}", "project": project}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
    if operation == "CreateRunFiles":
        files = [{"name": name, "uploadUrl": f"{url}/storage/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
    if operation == "CreateArtifact":
        artifact = {"id": "1", "state": "COMMITTED", "artifactSequence": {"id": "1", "latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}
    return {}
