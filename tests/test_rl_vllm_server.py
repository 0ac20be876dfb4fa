"""A real vLLM server over HTTP: samples, weight sync, its death, keys, another model, a taken port.

One server starts for the whole file, and once more in the middle of it: about forty seconds of CPU.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_cases import mismatch, perturb, prompts_of, saved_policy

from data.errors import UserError
from data.schema import Sampling
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.rollout.vllm_serve import RequireKey, ServerProcess, flags
from reasoning_rl.rollout.vllm_weights import ActorWeights

CONFIG = EngineConfig(backend="vllm-server", kv_gib=0.25, max_num_seqs=32)
needs_engine = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(tmp_path_factory: Any) -> Iterator[tuple[Any, Any, Any, str]]:
    """(generator, model, tokenizer, folder of the model)."""
    pytest.importorskip("vllm", reason="the engine is not installed")
    from reasoning_rl.rollout.vllm_server import VLLMServerGenerator

    tokenizer, model, path = saved_policy(tmp_path_factory.mktemp("served"), tied=True)
    generator = VLLMServerGenerator(path, tokenizer, CONFIG, seed=3)
    yield generator, model, tokenizer, path
    generator.close()
    assert not generator.process.is_running()


@needs_engine
def test_greedy_samples_are_those_of_transformers(server: Any) -> None:
    generator, model, tokenizer, _ = server
    sampling = Sampling(max_new_tokens=12, temperature=0, stop=("fewer",))
    ours = generator.generate(prompts_of(16), sampling)
    theirs = HFGenerator(model, tokenizer).generate(prompts_of(16), sampling)
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert replace(a, logprobs=()) == replace(b, logprobs=())
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=1e-4, atol=1e-4)


@needs_engine
def test_samples_of_one_request_differ_and_repeat(server: Any) -> None:
    generator, model, _, _ = server
    sampling = Sampling(max_new_tokens=8, temperature=1.5, n=3)
    state = generator.state_dict()
    groups = generator.generate([*prompts_of(6), "Ann has 12. " * 100], sampling)
    assert all(len({s.token_ids for s in group}) > 1 for group in groups[:6])
    assert [(s.token_ids, s.finish_reason) for s in groups[6]] == [((), "length")] * 3
    assert mismatch(model, [s for group in groups[:6] for s in group], temperature=1.5) < 1e-4
    generator.load_state_dict(state)
    assert generator.generate([*prompts_of(6), "Ann has 12. " * 100], sampling) == groups


@needs_engine
def test_another_model_at_the_url_is_refused(server: Any, tmp_path: Any) -> None:
    from reasoning_rl.rollout.vllm_server import VLLMServerGenerator

    generator, _, tokenizer, path = server
    config = replace_config(url=generator.http.url)
    VLLMServerGenerator(path, tokenizer, config)
    _, _, wide = saved_policy(tmp_path / "wide", tied=True, hidden=32)
    with pytest.raises(UserError, match="with hidden_size 64; .*wide has 32"):
        VLLMServerGenerator(wide, tokenizer, config, trains=True)
    _, _, other = saved_policy(tmp_path / "other", tied=True, seed=1)
    with pytest.raises(UserError, match="whose weights are not those in .*other"):
        VLLMServerGenerator(other, tokenizer, config)
    VLLMServerGenerator(other, tokenizer, config, trains=True)  # it is about to send its own
    with pytest.raises(UserError, match=r"no answer from http://127\.0\.0\.1:9/.*stepwell serve"):
        VLLMServerGenerator(path, tokenizer, replace_config(url="http://127.0.0.1:9"))


def replace_config(**over: Any) -> EngineConfig:
    return CONFIG.model_copy(update=over)


@needs_engine
def test_weights_travel_in_buckets_and_a_refused_update_changes_nothing(server: Any) -> None:
    generator, model, _, _ = server
    sampling = Sampling(max_new_tokens=8, seed=1)
    perturb(model, "embed_tokens")
    generator.push(ActorWeights(model, bucket_bytes=100_000), 1)
    assert len(generator.sync.last.files) > 3 and generator.http.weight_version().startswith("1-")
    torn = [(name, tensor[:1]) for name, tensor in ActorWeights(model)]
    with pytest.raises(UserError, match="did not take the weights of version 2"):
        generator.push(torn, 2)
    samples = [s for (s,) in generator.generate(prompts_of(6), sampling)]
    assert mismatch(model, samples) < 1e-4 and {s.version for s in samples} == {1}
    generator.push(ActorWeights(model), 2)
    assert generator.http.weight_version().startswith("2-")


@needs_engine
def test_a_server_killed_while_generating_loses_no_sample_and_no_weights(server: Any) -> None:
    generator, model, _, _ = server
    prompts, sampling = prompts_of(24), Sampling(max_new_tokens=200, temperature=0.0, n=2, seed=4)
    whole = generator.generate(prompts, sampling)
    threading.Timer(0.3, lambda: os.killpg(generator.process.process.pid, signal.SIGKILL)).start()
    again = generator.generate(prompts, sampling)
    assert generator.retries > 0 and generator.restarts == 1
    assert [len(group) for group in again] == [2] * 24
    tokens = [[[s.token_ids for s in group] for group in groups] for groups in (whole, again)]
    assert tokens[0] == tokens[1]
    assert mismatch(model, [s for group in again for s in group]) < 1e-3  # not those of the model's folder


@needs_engine
def test_a_server_that_is_gone_is_an_error_within_the_timeout(server: Any) -> None:
    from reasoning_rl.rollout.vllm_server import VLLMServerGenerator

    generator, model, tokenizer, path = server
    config = replace_config(url=generator.http.url, timeout_s=3.0)
    client = VLLMServerGenerator(path, tokenizer, config, trains=True)
    generator.process.stop()
    with pytest.raises(UserError, match="did not take the weights of version 5"):
        client.push(ActorWeights(model), 5)
    with pytest.raises(UserError, match="did not come back within 3 s"):
        client.generate(prompts_of(1), Sampling(max_new_tokens=2))


def test_a_taken_port_and_an_open_address_are_refused(tmp_path: Any, monkeypatch: Any) -> None:
    pytest.importorskip("vllm", reason="the engine is not installed")
    _, _, path = saved_policy(tmp_path, tied=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be listened on.*choose another --port"):
            ServerProcess(path, CONFIG, port=port).start()
    monkeypatch.delenv("STEPWELL_API_KEY", raising=False)
    with pytest.raises(UserError, match="open to other machines.*STEPWELL_API_KEY"):
        ServerProcess(path, CONFIG, host="0.0.0.0")


def test_every_route_but_the_health_check_wants_the_key(monkeypatch: Any) -> None:
    def status(path: str, given: str | None, key: str) -> int:
        monkeypatch.setenv("VLLM_API_KEY", key)
        sent: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"status": 200})

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", f"Bearer {given}".encode())] if given else []
        scope = {"type": "http", "path": path, "headers": headers}
        asyncio.run(RequireKey(app)(scope, None, send))
        return sent[0]["status"]

    assert status("/collective_rpc", None, "secret") == 401
    assert status("/update_weights", "wrong", "secret") == 401
    assert status("/update_weights", "secret", "secret") == 200
    assert status("/health", None, "secret") == 200
    assert status("/update_weights", None, "") == 200


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"<html>", "no vLLM server: /v1/models gives '<html>'"), (b'{"data": []}', "no model")],
)
def test_something_else_at_the_url_is_named(tmp_path: Any, answer: bytes, said: str) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    pytest.importorskip("vllm", reason="the engine is not installed")
    from reasoning_rl.rollout.vllm_server import VLLMServerGenerator

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    tokenizer, _, path = saved_policy(tmp_path, tied=True)
    with HTTPServer(("127.0.0.1", 0), Page) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=said):
            VLLMServerGenerator(path, tokenizer, replace_config(url=f"http://127.0.0.1:{page.server_port}"))
        page.shutdown()


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Any) -> None:
    """Here a stand-in: a process in a group of its own, which watches its parent as the server does."""
    watch = (
        "import os, time; from reasoning_rl.rollout.vllm_serve import end_with; "
        "end_with(int(os.environ['P']), 0.05); time.sleep(60)"
    )
    start = (
        "import os, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', "
        f"{watch!r}], env=dict(os.environ, P=str(os.getpid())), start_new_session=True); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    root = str(Path(__file__).resolve().parent.parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", start],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.2)
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_arguments_become_options() -> None:
    assert flags(
        {"max_model_len": 64, "enforce_eager": True, "enable_x": False, "y": None, "z": {"a": 1}}
    ) == [*("--max-model-len", "64", "--enforce-eager", "--no-enable-x", "--z", '{"a": 1}')]
