"""vLLM in an environment of its own, started with the KV of a data set and stopped again.

`make vllm-test` builds the environment; LAG_VLLM names another one's python.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from socket import socket
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
START = 600.0  # seconds
# One thread, a small cache, and nothing told to anybody.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def python() -> Path:
    """The interpreter that has vLLM.

    Raises:
        FileNotFoundError: there is none; tells the command that makes it.
    """
    path = Path(os.environ.get("LAG_VLLM") or ROOT / ".venv-vllm" / "bin" / "python")
    if not path.exists():
        raise FileNotFoundError(f"{path} not found; run: make vllm-test, or set LAG_VLLM")
    return path.absolute()


def transfer_config(data: Path, dataset: str, model: str, dtype: str = "auto") -> dict[str, Any]:
    """What `serve.py --vllm-config` prints."""
    command = [sys.executable, "serve.py", "--vllm-config", "-d", dataset, "--data", str(data)]
    command += ["--model", model, "--dtype", dtype, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


class EngineServer:
    """A server while the block runs. config: None serves no KV. log: where its words go."""

    def __init__(
        self, model: str, config: dict | None, log: Path, *flags: str, dtype: str = "float32"
    ):
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.log = model, log
        self.command = [str(python()), "-m", "vllm.entrypoints.openai.api_server"]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port), "--model", model]
        self.command += [
            "--dtype",
            dtype,
            "--enforce-eager",
            "--disable-uvicorn-access-log",
            *flags,
        ]
        self.command += ["--kv-transfer-config", json.dumps(config)] if config else []

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def __enter__(self) -> Self:
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        """End the server and the processes that it started, by the number of their session."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, how)
                self.process.wait(30)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def wait(self) -> None:
        """
        Raises:
            RuntimeError: it ended, or does not answer; shows its last words.
        """
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/v1/models")
                return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"the server does not answer:\n{self.words()[-3000:]}")

    def words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.root + path, timeout=30) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        """The sum of a counter of the engine's."""
        rows = [line.rsplit(" ", 1) for line in self.get("/metrics").splitlines()]
        return sum(float(row[1]) for row in rows if row[0].split("{")[0] == name)

    def ask(self, body: dict[str, Any], timeout: float = 600) -> tuple[int, dict[str, Any]]:
        """Status and answer of a completion."""
        data = json.dumps({"model": self.model, "return_token_ids": True, **body}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/completions", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
