"""Rollouts from a vLLM server over HTTP: one found at a URL, or one started and watched here.

    generator = VLLMServerGenerator("runs/sft/model", tokenizer, EngineConfig(backend="vllm-server"))

Not a load balancer: one server. Generating needs no vLLM on this side; sending weights does.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from transformers import AutoConfig

from data.errors import UserError
from data.schema import Sample, Sampling
from reasoning_rl.rollout.samples import (
    check_tokenizer,
    encode_prompts,
    make_sample,
    request_seed,
    too_long,
)
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.rollout.vllm_engine import fingerprint, sampling_arguments
from reasoning_rl.rollout.vllm_serve import ServerProcess
from reasoning_rl.rollout.vllm_weights import WeightSync

MAX_RESTARTS = 3
"""Restarts within one call of generate, after which the requests themselves are taken for the cause."""
PROBE = "A train covers 3.5 km in 2 minutes.\nHow far in 7?"
"""Text whose token ids tell one tokenizer from another."""


class ServerDown(Exception):
    """The server does not answer, or answers that its engine is gone."""


class VLLMServerGenerator:
    """A TextGenerator over a vLLM server, and the WeightSink of its weights.

    One request a prompt, with all its samples: a request that fails is asked again as a whole, with the same
    seed, when the server is back, so no sample is lost and none comes twice. A server that was restarted
    gets the last pushed weights again before it is asked anything.
    """

    def __init__(
        self, model: str, tokenizer: Any, config: EngineConfig, *, seed: int = 0, trains: bool = False
    ) -> None:
        """Connect, or start a server. Raises UserError when it serves another model than `model`.

        trains: weights will be pushed, so that the server's own need not be those in `model`.
        """
        check_tokenizer(tokenizer)
        self.model, self.tokenizer, self.config, self.seed = model, tokenizer, config, seed
        self.calls = 0
        self.version = 0
        self.retries = 0
        """Requests asked again because the server went away."""
        self.restarts = 0
        self.pushed: str | None = None
        """The name of the weights that the server must have; none: its own."""
        self.process = None
        if config.url is None:
            self.process = ServerProcess(model, config)
            self.process.start()
            self.process.wait_ready()
        self.http = HTTP(self.process.url if self.process else str(config.url), config)
        try:
            self.served, self.context = self._check_model(trains)
        except ServerDown as error:
            raise UserError(f"{error}; is a server running there? `stepwell serve` starts one") from error
        self.sync = WeightSync(self.http, config, in_process=False)
        self._lock = threading.Lock()
        self._life = 0
        self._is_closed = False

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "calls": self.calls, "version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the random stream. The weights are pushed by whoever restored them."""
        self.seed, self.calls, self.version = state["seed"], state["calls"], state["version"]

    def generate(
        self, prompts: Sequence[str], sampling: Sampling, *, places: Sequence[int] | None = None
    ) -> list[list[Sample]]:
        """Return `sampling.n` samples a prompt, in order.

        places: a number for each prompt that its random stream is made from; none: 0, 1, 2 ...
        Raises UserError for an empty prompt, and when the server stays away for longer than timeout_s.
        """
        if not prompts:
            return []
        encoded = encode_prompts(self.tokenizer, prompts)
        seed, call = (self.seed, self.calls) if sampling.seed is None else (sampling.seed, 0)
        self.calls += sampling.seed is None
        version, patience = self.version, self.restarts + MAX_RESTARTS

        def draw(i: int) -> list[Sample]:
            ids = encoded[i]
            if len(ids) >= self.context:
                return too_long(ids, sampling, version)
            body = sampling_arguments(
                sampling,
                eos=self.tokenizer.eos_token_id,
                room=self.context - len(ids),
                seed=request_seed(seed, call, i if places is None else places[i]),
            )
            body |= {"model": self.served, "prompt": ids, "return_token_ids": True}
            choices = sorted(self._ask(body, patience)["choices"], key=lambda choice: choice["index"])
            samples = [
                make_sample(
                    self.tokenizer,
                    ids,
                    choice["token_ids"],
                    choice["logprobs"]["token_logprobs"],
                    sampling,
                    version,
                )
                for choice in choices
            ]
            return samples if len(samples) == sampling.n else samples * sampling.n

        try:
            while True:
                self._check_weights(patience)
                with ThreadPoolExecutor(max(1, self.config.max_num_seqs // sampling.n)) as threads:
                    drawn = list(threads.map(draw, range(len(prompts))))
                # Somebody may have restarted the server meanwhile: it then answered with its first weights.
                if self.pushed is None or self.http.weight_version() == self.pushed:
                    return drawn
        except ServerDown as error:
            raise UserError(
                f"{error}; look into the server's log, mend what ails it, then --resume the run"
            ) from error

    def push(self, named_tensors: Iterable[tuple[str, Any]], version: int) -> None:
        """Give the server new weights; samples name `version` from now on.

        Raises UserError when it does not take them: it keeps the old ones, and their version.
        """
        self.sync.push(named_tensors, version)
        self.version, self.pushed = version, self.sync.last.name or self.http.weight_version()

    def follow(self, version: int) -> None:
        """Take notice of weights that another process has pushed."""
        self.version, self.pushed = version, self.http.weight_version()

    def forget_prefixes(self) -> None:
        """Empty the prefix cache; a server that is away has none."""
        with contextlib.suppress(ServerDown):
            self.http.post("reset_prefix_cache")

    def close(self) -> None:
        """Stop the server, if it was started here; what is being generated fails."""
        self._is_closed = True
        with self._lock:  # nobody is about to start it again
            if self.process is not None:
                self.process.stop()
        self.sync.close()

    def _ask(self, body: dict[str, Any], patience: int) -> Any:
        while True:
            life = self._life
            try:
                return self.http.post("v1/completions", body)
            except ServerDown as error:
                self._revive(life, patience, error)
                self.retries += 1

    def _check_weights(self, patience: int) -> None:
        """Notice a server that was restarted between two calls: it would answer with its first weights."""
        life = self._life
        try:
            fresh = self.pushed is not None and self.http.weight_version() != self.pushed
        except ServerDown as error:
            self._revive(life, patience, error)
            return
        if fresh:
            self._revive(life, patience, ServerDown("its weights are not the ones it was given"))

    def _revive(self, life: int, patience: int, cause: Exception) -> None:
        """Wait for the server, start it if it is ours, give it its weights. One thread does, others wait."""
        with self._lock:
            if self._life != life:
                return
            if self.restarts >= patience:
                raise UserError(f"the server at {self.http.url} dies again and again ({cause})") from cause
            self._wait_until_up(cause)
            if self.pushed is not None and self.http.weight_version() != self.pushed:
                self.sync.send_again(self.version)
            self.restarts += 1
            self._life += 1

    def _wait_until_up(self, cause: Exception) -> None:
        deadline = time.monotonic() + self.config.timeout_s
        started = False
        while time.monotonic() < deadline:
            if self._is_closed:
                raise UserError("the generator was closed while it sampled")
            if self.http.is_healthy():
                return
            # Its connections break a moment before a killed server counts as dead: look every time.
            if self.process is not None and not self.process.is_running():
                if started:
                    self.process.wait_ready()  # says why it died
                self.process.stop()
                self.process.start()
                started = True
            time.sleep(0.2)
        raise UserError(
            f"the server at {self.http.url} did not come back within {self.config.timeout_s:g} s ({cause}); "
            "start it again, then --resume the run"
        ) from cause

    def _check_model(self, trains: bool) -> tuple[str, int]:
        """Return (served name, context length) of a server that has the model that is asked for."""
        served = self.http.served_model()
        name, where = served["id"], f"the server at {self.http.url} serves {served['id']}"
        mine = AutoConfig.from_pretrained(self.model)
        own_ids = self.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        probe = {"model": name, "prompt": PROBE, "add_special_tokens": False}
        if self.http.post("tokenize", probe)["tokens"] != own_ids:
            raise UserError(f"{where}, whose tokenizer differs from that of {self.model}")
        theirs = self.http.describe()
        if theirs is None:
            if trains or os.path.basename(name.rstrip("/")) != os.path.basename(self.model.rstrip("/")):
                raise UserError(
                    f"{where} and says nothing about its weights; start it with `stepwell serve`, which "
                    "does, and which lets a trainer replace them"
                )
            return name, served["max_model_len"]
        for key, attribute in (
            ("vocab_size", "vocab_size"),
            ("hidden_size", "hidden_size"),
            ("num_layers", "num_hidden_layers"),
        ):
            if theirs[key] != getattr(mine, attribute):
                raise UserError(
                    f"{where}, with {key} {theirs[key]}; {self.model} has {getattr(mine, attribute)}"
                )
        if theirs["logprobs_mode"] != "processed_logprobs":
            raise UserError(f"{where} with logprobs of another distribution; start it with `stepwell serve`")
        if not trains:
            if theirs["fingerprint"] != fingerprint(self.model):
                raise UserError(f"{where}, whose weights are not those in {self.model}")
            if self.http.weight_version() != "default":
                raise UserError(f"{where}, but a trainer has replaced its weights; start it anew")
        return name, served["max_model_len"]


class HTTP:
    """The server's routes; as vLLM's VLLMWeightSyncClient, its weight updates. One session a thread."""

    def __init__(self, url: str, config: EngineConfig) -> None:
        self.url, self.timeout_s = url.rstrip("/"), config.timeout_s
        key = os.environ.get(config.api_key_env, "")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.key_name = config.api_key_env
        self._sessions = threading.local()

    def post(self, path: str, body: Any = None) -> Any:
        return self._call("POST", path, body)

    def get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def _call(self, method: str, path: str, body: Any) -> Any:
        """Return the answer's JSON. Raises ServerDown, or UserError for a request that was refused."""
        session = getattr(self._sessions, "session", None)
        if session is None:
            session = self._sessions.session = requests.Session()
        try:
            # Connecting is quick or impossible; an answer takes what generating takes.
            reply = session.request(
                method, f"{self.url}/{path}", json=body, headers=self.headers, timeout=(5, self.timeout_s)
            )
        except requests.ReadTimeout as error:
            raise UserError(
                f"no answer from {self.url}/{path} within timeout_s, {self.timeout_s:g} s: it hangs, or "
                "responses take longer; then raise timeout_s or lower max_num_seqs"
            ) from error
        except requests.RequestException as error:
            raise ServerDown(f"no answer from {self.url}/{path}: {type(error).__name__}") from error
        if reply.status_code in (401, 403):
            raise UserError(f"{self.url} refuses the key; set {self.key_name} to the server's")
        if reply.status_code >= 500:
            raise ServerDown(f"{path} failed: {reply.text[-300:]}")
        if not reply.ok:
            raise UserError(f"{self.url}/{path} refused: {reply.text[:300]}")
        try:
            return reply.json() if reply.content else None
        except requests.JSONDecodeError as error:
            raise UserError(f"{self.url} is no vLLM server: /{path} gives {reply.text[:60]!r}") from error

    def is_healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", headers=self.headers, timeout=5).ok
        except requests.RequestException:
            return False

    def served_model(self) -> dict[str, Any]:
        """The entry of the (first) model that is served."""
        models = self.get("v1/models")
        found = models.get("data") if isinstance(models, dict) else None
        if not found or not {"id", "max_model_len"} <= found[0].keys():
            raise UserError(f"{self.url} is no vLLM server: it lists no model with a context length")
        return found[0]

    def describe(self) -> dict[str, Any] | None:
        """What the worker says of its model; None from a server that was not started by `stepwell serve`."""
        try:
            return self.post("collective_rpc", {"method": "describe_model"})["results"][0]
        except (UserError, ServerDown):
            return None

    def weight_version(self) -> str:
        return self.get("weight_info")["weight_version"]

    def world_size(self) -> int:
        return self.get("get_world_size")["world_size"]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.post("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self.post("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self.post("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.post("finish_weight_update", {"weight_version": weight_version})
        self.post("reset_prefix_cache")

    def abort(self) -> None:
        """Tell the server to forget an unfinished update; a dead one has forgotten it already."""
        try:
            self.post("collective_rpc", {"method": "abort_weight_update"})
        except ServerDown:
            return
