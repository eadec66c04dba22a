"""A server as vLLM is one over HTTP: our connector in a fake engine, and words that a test decides."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_engine import Engine


class FakeVllm(ThreadingHTTPServer):
    """say: from a request's token ids to those of the reply. engine: None serves no KV.

    lie: changes what the connector says before it is sent.
    """

    daemon_threads = True

    def __init__(
        self, say: Callable[[list[int]], list[int]], engine: Engine | None, name: str = "m"
    ):
        self.say, self.engine, self.name = say, engine, name
        self.lie: Callable[[dict | None], dict | None] = lambda told: told
        self.length = 16384
        self.bodies: list[dict[str, Any]] = []
        self.broken = 0  # so many of the next requests fail for no reason
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The requests that are no probes."""
        return [body for body in self.bodies if body["prompt"] != [0]]

    def __enter__(self) -> "FakeVllm":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        listed = {"id": self.server.name, "max_model_len": self.server.length}
        self.send(200, {"data": [listed]})

    def do_POST(self) -> None:
        assert self.path == "/v1/completions"
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.bodies.append(body)
        told, failed = None, False
        if server.broken and body["prompt"] != [0]:
            server.broken, failed = server.broken - 1, True
        elif server.engine:
            found = server.engine.ask(body["prompt"], body.get("kv_transfer_params"))
            told, failed = server.lie(found.told), found.failed
        if failed:
            self.send(500, {"error": {"message": "Internal server error", "code": 500}})
            return
        choice = {"token_ids": server.say(body["prompt"])[: body["max_tokens"]], "text": ""}
        self.send(200, {"choices": [choice], "kv_transfer_params": told})

    def send(self, status: int, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *values: Any) -> None:
        pass
