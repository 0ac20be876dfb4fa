"""Learning from pairs and by rejection, which must not depend on the number of processes."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from distributed_loop import parrot
from rl_world import oracle_grader, tiny_policy, world
from torch import Tensor

from data.schema import Preference
from prm.checkpoint import save_model
from prm.fit import FitConfig
from reasoning_rl.dpo import DPOConfig, fit_preferences
from reasoning_rl.reward_model import RMConfig, fit_reward
from reasoning_rl.rft import LearnRight, RFTConfig
from reasoning_rl.rounds import run_rounds

FIT = FitConfig(batch_size=4, learning_rate=1e-3, micro_batch_tokens=320, save_every=None)


def learn(output_dir: Path, accelerator: Any, make_log: Callable[[], Any]) -> tuple[dict, dict[str, Tensor]]:
    """Return what DPO, a reward model and rejection sampling logged, and their weights."""
    tokenizer, problems = world(8)
    pairs = [Preference(f"{p.text}\n", p.solution, p.solution.replace("1", "3"), id=p.id) for p in problems]
    logs = {name: make_log() for name in ("dpo", "rm", "rft")}
    policy = tiny_policy(tokenizer, hidden=16)
    fit_preferences(
        policy,
        tokenizer,
        pairs[:6],
        pairs[6:],
        DPOConfig(model="", data="", output_dir=str(output_dir / "dpo"), fit=FIT),
        accelerator=accelerator,
        log=logs["dpo"],
    )
    reward = fit_reward(
        tiny_policy(tokenizer, seed=1, hidden=16),
        tokenizer,
        pairs[:6],
        pairs[6:],
        RMConfig(model="", data="", output_dir=str(output_dir / "rm"), fit=FIT),
        accelerator=accelerator,
        log=logs["rm"],
        pair_metrics=lambda chosen, rejected: {"chosen": fmean(chosen), "rejected": fmean(rejected)},
    )
    start = output_dir / "start"
    if accelerator.is_main_process:
        save_model(start, tiny_policy(tokenizer, seed=2, hidden=16), tokenizer)
    accelerator.wait_for_everyone()
    rollout = {"problems_per_iteration": 4, "samples_per_problem": 3, "max_new_tokens": 64}
    config = RFTConfig(
        policy=str(start), output_dir=str(output_dir / "rft"), rounds=2, rollout=rollout, fit=FIT
    )
    run_rounds(
        config,
        LearnRight(config, tokenizer, accelerator),
        start=lambda _, current: current,
        problems=problems,
        grader=oracle_grader,
        accelerator=accelerator,
        log=logs["rft"],
        make_generator=lambda model, tokenizer: parrot(tokenizer, problems),
    )
    named = {"dpo": policy, "rm": reward}
    states = {f"{name}.{k}": v.clone() for name, m in named.items() for k, v in m.state_dict().items()}
    return {name: log.rows for name, log in logs.items()}, states
