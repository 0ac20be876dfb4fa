"""`stepwell serve`: a vLLM server that a trainer can send weights to."""

import time
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console

from data.errors import UserError
from data.settings import Settings
from reasoning_rl.options import parse
from reasoning_rl.rollout.settings import Count, EngineConfig


class ServeConfig(Settings):
    """A server for backend vllm-server."""

    model: str
    """Folder or hub id of the model to serve."""
    host: str = "127.0.0.1"
    """Address to listen on. Beyond this machine only with a key: who reaches the server can replace its
    weights."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often an engine that dies is started again."""
    log_lines: Count = 20
    """Lines of the engine's log to show when it dies for good."""
    engine: EngineConfig = EngineConfig(backend="vllm-server")


def run_serve(args: list[str]) -> None:
    """`stepwell serve`."""
    from reasoning_rl.rollout.vllm_serve import ServerProcess

    parsed = parse(args, ServeConfig)
    config = ServeConfig.from_dict(parsed.values, parsed.where)
    server = ServerProcess(config.model, config.engine, host=config.host, port=config.port)
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    try:
        for attempt in range(config.restarts + 1):
            say(f"{'starting' if not attempt else 'starting again'}: {config.model} (log: {server.log})")
            server.start()
            server.wait_ready()
            say(f"serving {config.model} at {server.url}; Ctrl-C ends it")
            while server.is_running():
                time.sleep(0.5)
            server.stop()
            say("the engine died")
    finally:
        server.stop()
    last = "\n".join(Path(server.log).read_text(errors="replace").splitlines()[-config.log_lines :])
    raise UserError(f"the engine died {config.restarts + 1} times; the end of its log:\n{last}")
