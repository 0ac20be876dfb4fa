"""Memory of a PPO run: flat over hundreds of iterations, and recorded phase by phase."""

import json
import statistics
from types import SimpleNamespace

import pytest
import torch
from rl_runs import learner_for, run, settings
from rl_world import OracleScorer, tiny_policy, world

from data.errors import UserError
from data.machine import peak_rss_mb, take_peak_rss_mb
from reasoning_rl.offload import HOST, VisitingScorer
from reasoning_rl.telemetry import RunLog

ITERATIONS, WARM_UP = 200, 60
MIB = 2**20
ACCELERATOR = (
    *("num_processes", "process_index", "is_main_process", "reduce", "gather", "wait_for_everyone"),
    *("no_sync", "backward", "clip_grad_norm_"),
)


def resident_mb() -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def test_memory_is_flat_over_two_hundred_iterations(tmp_path) -> None:
    """Many rows through a small model: batches that are kept weigh more than the allocator's noise."""
    tokenizer, problems = world(64)
    config = settings(
        tmp_path,
        iterations=ITERATIONS,
        save_every=0,
        rollout={"problems_per_iteration": 64, "samples_per_problem": 1, "max_new_tokens": 4},
        update={"minibatch_size": 64, "micro_batch_tokens": 100_000},
    )
    policy = tiny_policy(tokenizer, hidden=8)
    policy.model.layers, policy.config.num_hidden_layers = policy.model.layers[:1], 1
    resident = []

    class Log(RunLog):
        def __call__(self, *args) -> None:
            super().__call__(*args)
            resident.append(resident_mb())

    run(
        config,
        learner_for(config, tokenizer, policy=policy),
        tokenizer,
        problems,
        render=lambda text: f"{text}\n" * 2,
        log=Log(tmp_path),
    )
    assert len(resident) == ITERATIONS
    start = statistics.fmean(resident[WARM_UP : WARM_UP + 20])
    assert statistics.fmean(resident[-20:]) < 1.02 * start


def test_each_phase_has_its_own_peak(tmp_path) -> None:
    tokenizer, problems = world(8)
    rollout = {"problems_per_iteration": 8, "samples_per_problem": 1, "max_new_tokens": 4}
    config = settings(tmp_path, iterations=2, save_every=0, rollout=rollout)

    class Greedy(OracleScorer):
        def score(self, *args):
            torch.ones(200 * MIB // 4).sum()
            return super().score(*args)

    run(config, learner_for(config, tokenizer), tokenizer, problems, scorer=Greedy(problems))
    rows = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    phases = ("generate", "score", "reference", "experience", "update", "sync")
    for row in rows:
        peaks = {phase: row[f"memory/{phase}_rss_mb"] for phase in phases}
        assert min(peaks.values()) > 50 and max(peaks.values()) <= row["memory/peak_rss_mb"]
        assert all(row[f"time/{phase}_seconds"] > 0 for phase in phases)
        # What scoring took for a moment is in its peak, and in no other phase's.
        assert peaks["score"] > 150 + max(peaks[phase] for phase in ("reference", "experience", "sync"))


def test_the_peak_since_the_last_call_forgets_what_was_before() -> None:
    take_peak_rss_mb()
    torch.ones(100 * MIB // 4).sum()
    high, low = take_peak_rss_mb(), take_peak_rss_mb()
    assert high - low > 90
    assert peak_rss_mb() >= high  # the whole process's peak never falls


class Place(torch.nn.Module):
    """Says in `events` where it goes."""

    def __init__(self, name: str, model: torch.nn.Module, events: list) -> None:
        super().__init__()
        self.name, self.model, self.events = name, model, events

    def to(self, device) -> "Place":
        self.events.append((self.name, "host" if device == HOST else "device"))
        return self

    def forward(self, *args, **options):
        self.events.append((self.name, "runs"))
        return self.model(*args, **options)


def test_reference_and_reward_model_are_on_the_device_in_turn(tmp_path) -> None:
    tokenizer, problems = world(8)
    config = settings(tmp_path, iterations=2, offload="frozen", reference_ema=0.5)
    learner = learner_for(config, tokenizer)
    # Another name of the same CPU: enough to tell a device from the host.
    device, events = torch.device("cpu:0"), []
    learner.accelerator = SimpleNamespace(
        device=device, **{name: getattr(learner.accelerator, name) for name in ACCELERATOR}
    )
    frozen = learner.reference.module
    learner.reference.module = learner.reference.wrapped = Place("reference", frozen, events)
    learner.reference.parameters = dict(frozen.named_parameters())

    class Scorer(OracleScorer):
        model = None

        def score(self, *args):
            self.model(torch.zeros(1))
            return super().score(*args)

    scorer = Scorer(problems)
    scorer.model = Place("prm", torch.nn.Identity(), events)
    run(config, learner, tokenizer, problems, scorer=VisitingScorer(scorer, device))
    assert events.pop(0) == ("prm", "host")  # from the start
    there = set()
    for name, event in events:
        if event == "runs":
            assert there == {name}
        elif event == "device":
            there.add(name)
        else:
            there.discard(name)
    assert not there
    visits = [name for name, event in events if event == "device"]
    assert visits == ["prm", "reference", "reference"] * 2  # the last to follow the actor


def test_offload_changes_no_number(tmp_path) -> None:
    tokenizer, problems = world(8)
    rows = {}
    for offload in ("none", "frozen"):
        config = settings(tmp_path / offload, offload=offload)
        rows[offload] = run(config, learner_for(config, tokenizer), tokenizer, problems)
    assert rows["none"] == rows["frozen"]


def test_an_engines_reward_model_cannot_be_offloaded(tmp_path) -> None:
    with pytest.raises(UserError, match="set prm_backend to local"):
        settings(tmp_path, offload="frozen", prm_backend="vllm")


@pytest.mark.parametrize("lora", [0, 4])
def test_checkpointed_layers_train_alike_and_run_again_in_the_backward(tmp_path, lora) -> None:
    if lora:
        pytest.importorskip("peft", reason="LoRA needs the extra 'lora'")
    tokenizer, problems = world(8)
    rows, calls = {}, {}
    for on in (False, True):
        update = {"minibatch_size": 8, "learning_rate": 1e-3, "gradient_checkpointing": on}
        adapters = {"lora": {"rank": lora}}
        critic = {"learning_rate": 1e-3, **adapters}
        config = settings(tmp_path / str(on), iterations=2, update=update, critic=critic, **adapters)
        learner = learner_for(config, tokenizer)
        count = calls[on] = []
        for model in (learner.policy, learner.critic_model):
            model.model.layers[0].mlp.act_fn.register_forward_hook(
                lambda *_, count=count: count.append(torch.is_grad_enabled())
            )
        rows[on] = run(config, learner, tokenizer, problems)
    assert sum(calls[True]) == 2 * sum(calls[False]) > 0
    assert calls[True].count(False) == calls[False].count(False)  # nothing twice where nothing is learned
    for a, b in zip(rows[False], rows[True], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
