"""Evaluation by engines: several as one, and the commands over real ones (marked vllm)."""

import importlib.util
import json
import threading

import pytest
from cli_cases import failure
from rl_world import tiny_policy, world

from data.errors import UserError
from data.schema import Sample, Sampling
from prm.checkpoint import save_model
from reasoning_rl.cli import main
from reasoning_rl.eval_config import EvalConfig
from reasoning_rl.rollout.pool import EngineChoice, PooledGenerator
from reasoning_rl.rollout.samples import request_seed

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the vllm extra")


class Echo:
    """An engine whose samples tell the prompt and the stream they came from; it waits for its peers."""

    def __init__(self, together: threading.Barrier | None = None) -> None:
        self.together, self.calls, self.is_closed = together, 0, False

    def generate(self, prompts, sampling, *, places=None):
        if self.together is not None:
            self.together.wait(timeout=10)
        self.calls += 1
        return [
            [
                Sample((), (k,), (0.0,), f"{prompt} {request_seed(sampling.seed, 0, place)}", "stop")
                for k in range(sampling.n)
            ]
            for prompt, place in zip(prompts, places, strict=True)
        ]

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("count", [1, 2, 3])
def test_samples_come_in_order_and_do_not_depend_on_the_number_of_engines(count) -> None:
    prompts = [f"p{i}" for i in range(7)]
    pool = PooledGenerator([Echo() for _ in range(count)])
    texts = [[s.text for s in group] for group in pool.generate(prompts, Sampling(n=2, seed=4))]
    assert texts == [[f"p{i} {request_seed(4, 0, i)}"] * 2 for i in range(7)]
    unseeded = [pool.generate(prompts, Sampling())[0][0].text for _ in range(2)]
    assert unseeded[0] != unseeded[1], "without a seed every call has a stream of its own"
    assert pool.generate(prompts[:1], Sampling(seed=4))[0][0].text == texts[0][0], (
        "fewer prompts than engines"
    )
    pool.close()
    assert all(engine.is_closed for engine in pool.generators)


def test_engines_of_a_pool_work_at_the_same_time() -> None:
    together = threading.Barrier(3)
    PooledGenerator([Echo(together) for _ in range(3)]).generate(list("abcdef"), Sampling(seed=0))


def test_a_dead_engine_of_a_pool_is_an_error_and_no_missing_sample() -> None:
    class Dead(Echo):
        def generate(self, prompts, sampling, *, places=None):
            raise UserError("the engine is gone")

    with pytest.raises(UserError, match="the engine is gone"):
        PooledGenerator([Echo(), Dead()]).generate(list("abcd"), Sampling(seed=0))


def test_choices_become_one_config_an_engine() -> None:
    choice = EngineChoice.from_dict({"backend": "vllm", "engines": 2, "engine": {"max_num_seqs": 8}})
    assert [(c.backend, c.own_process, c.max_num_seqs) for c in choice.configs()] == [("vllm", True, 8)] * 2
    servers = EngineChoice(backend="vllm-server", urls="http://a:1, http://b:2").configs()
    assert [c.url for c in servers] == ["http://a:1", "http://b:2"]
    with pytest.raises(UserError, match="engines 2 needs vLLM"):
        EngineChoice(engines=2).configs()
    with pytest.raises(UserError, match="engines 3, but urls names 2"):
        EngineChoice(backend="vllm-server", engines=3, urls="http://a:1,http://b:2").configs()
    assert EvalConfig(model="m").identity() == {}, "runs from before there was a choice go on"


def test_several_transformers_engines_are_refused_with_the_remedy(tmp_path, capsys) -> None:
    model = save_policy(tmp_path / "model")
    error = failure(capsys, "eval", "arithmetic", "--model", model, "--engines", "2", "--limit", "2")
    assert "set backend to vllm" in error


def save_policy(folder) -> str:
    tokenizer, _ = world(1)
    save_model(folder, tiny_policy(tokenizer, hidden=64), tokenizer)  # heads 32 wide: vLLM's least on a CPU
    return str(folder)


@needs_vllm
@pytest.mark.vllm
def test_eval_command_by_two_engines_gives_the_transformers_answers_and_resumes(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    model = save_policy(tmp_path / "model")
    common = ["--model", model, "--limit", "12", "--max-new-tokens", "12"]
    rows = {}
    for backend, more in (("hf", []), ("vllm", ["--engines", "2", "--engine.kv-gib", "0.25"])):
        folder = tmp_path / backend
        main(["eval", "arithmetic", *common, "--backend", backend, *more, "--output-dir", str(folder)])
        lines = (folder / "arithmetic" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        rows[backend] = [json.loads(line) for line in lines]
    shown = {b: [(r["id"], r["response"], r["finish_reason"]) for r in rows[b]] for b in rows}
    assert shown["vllm"] == shown["hf"], "greedy answers are the same tokens"
    result = json.loads((tmp_path / "vllm" / "arithmetic" / "result.json").read_text(encoding="utf-8"))
    assert result["timing"]["tokens_per_second"] > 0 and result["settings"]["backend"] == "vllm"
    # Killed half way: the rest is made up, by one engine this time, and nothing twice.
    path = tmp_path / "vllm" / "arithmetic" / "samples.jsonl"
    kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:5]
    path.write_text("".join(kept), encoding="utf-8")
    output = ["--backend", "vllm", "--engine.kv-gib", "0.25", "--output-dir", str(tmp_path / "vllm")]
    main(["eval", "arithmetic", *common, *output])
    again = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(r["id"], r["response"], r["finish_reason"]) for r in again] == shown["hf"]
