"""A vLLM server as a child process: started, waited for, watched, stopped.

    server = ServerProcess("runs/sft/model", EngineConfig(), port=8000)
    server.start(); server.wait_ready(); ...; server.stop()

The server is vLLM's own; here are only its arguments and its life. Its weight-update routes come with vLLM's
development mode, which asks for no key: `RequireKey` does, on every route.
"""

import atexit
import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import requests
from transformers import AutoConfig

from data.errors import UserError
from prm.model import load_tokenizer
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.rollout.vllm_engine import (
    ENVIRONMENT,
    context_of,
    engine_arguments,
    has_gpu,
    require_vllm,
    save_tokenizer,
    start_error,
)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIDDLEWARE = "reasoning_rl.rollout.vllm_serve.RequireKey"
OPEN_PATHS = ("/health", "/ping")
PARENT = "STEPWELL_SERVER_OF"
"""Environment variable of a server: the process that it is to end with."""


class ServerProcess:
    """One vLLM server. It is stopped when this process ends, and ends itself when this one is killed."""

    def __init__(
        self, model: str, config: EngineConfig, *, host: str = "127.0.0.1", port: int | None = None
    ) -> None:
        """Raises UserError for a model without config, and for a public address without a key."""
        require_vllm("a vLLM server")
        self.model, self.config, self.host = model, config, host
        self.key = os.environ.get(config.api_key_env, "")
        if host not in LOOPBACK and not self.key:
            raise UserError(
                f"host {host} is open to other machines, and whoever reaches the server can replace its "
                f"weights: set {config.api_key_env} to a key of your choice, or keep to 127.0.0.1"
            )
        self.port = port or free_port()
        self.context = context_of(config, AutoConfig.from_pretrained(model))
        self.tokenizer = save_tokenizer(load_tokenizer(model))
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)
        descriptor, name = tempfile.mkstemp(prefix="stepwell-serve-", suffix=".log")
        os.close(descriptor)
        self.log = Path(name)
        self.log_start = 0
        """Where the present process began to write."""

    @property
    def url(self) -> str:
        """Where clients on this machine find the server."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"

    def start(self) -> None:
        """Start the process; returns at once. Raises UserError when the port is taken."""
        check_port(self.host, self.port)
        arguments = engine_arguments(
            self.config, self.model, tokenizer=self.tokenizer.name, max_model_len=self.context
        )
        arguments.pop("model")
        environment = {**ENVIRONMENT, **os.environ, "VLLM_SERVER_DEV_MODE": "1", PARENT: str(os.getpid())}
        if not has_gpu() and self.config.tensor_parallel == 1:
            # The worker lives in the engine's process: one process fewer to start.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if self.key:
            environment["VLLM_API_KEY"] = self.key
        command = [
            *(sys.executable, "-m", server_module(), "--model", self.model),
            *("--host", self.host, "--port", str(self.port), "--served-model-name", self.model),
            *("--allowed-origins", "[]", "--middleware", MIDDLEWARE),
            *("--disable-log-stats", "--disable-uvicorn-access-log"),
            *flags(arguments),
        ]
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self) -> None:
        """Return when the server answers. Raises UserError when it dies or takes longer than timeout_s."""
        assert self.process is not None
        deadline = time.monotonic() + self.config.timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.process = None
                said = self.log.read_bytes()[self.log_start :].decode(errors="replace")
                raise start_error(said, self.model)
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    return
            time.sleep(0.1)
        self.stop(keep_log=True)
        raise UserError(
            f"the server for {self.model} was not ready within {self.config.timeout_s:g} s (timeout_s); "
            f"its log: {self.log}"
        )

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self, *, keep_log: bool = False) -> None:
        """Stop the server and its children; at most ten seconds."""
        process, self.process = self.process, None
        if process is None:
            return
        for sign, patience in ((signal.SIGTERM, 8), (signal.SIGKILL, 2)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        if not keep_log:
            self.log.unlink(missing_ok=True)


def server_module() -> str:
    """Where vLLM's server starts. Not its command line, which fails under the CPU build's package name."""
    if importlib.util.find_spec("vllm.entrypoints.launchers"):
        return "vllm.entrypoints.launchers.api_server.entry"
    return "vllm.entrypoints.openai.api_server"


def flags(arguments: dict[str, Any]) -> list[str]:
    """Engine arguments as options of `vllm serve`; None is left out."""
    words: list[str] = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def check_port(host: str, port: int) -> None:
    """Raise UserError when nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port"
            ) from error


def end_with(parent: int, every_s: float = 1.0) -> None:
    """Kill this process' group once its parent is gone: a killed trainer cannot stop its server."""
    while os.getppid() == parent:
        time.sleep(every_s)
    os.killpg(0, signal.SIGKILL)


class RequireKey:
    """ASGI middleware: every route but the health check wants the key, if there is one."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        key = os.environ.get("VLLM_API_KEY", "")
        self.digest = hashlib.sha256(f"Bearer {key}".encode()).digest() if key else None
        if PARENT in os.environ:
            threading.Thread(target=end_with, args=(int(os.environ[PARENT]),), daemon=True).start()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and self.digest and scope["path"] not in OPEN_PATHS:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(hashlib.sha256(given).digest(), self.digest):
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"missing or wrong API key"})
                return
        await self.app(scope, receive, send)
