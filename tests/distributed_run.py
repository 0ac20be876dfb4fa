"""Ten PPO updates on recorded rollouts, one SFT pass, whole loops, pairs; every process runs it, any engine.

    torchrun --nproc-per-node 2 tests/distributed_run.py OUTPUT_DIR          # or by distributed_launch.py

Rollouts are replayed, so that engines can be compared number by number. On the way a checkpoint is saved and
continued. Writes numbers.json, the critic's weights and two model folders.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from distributed_loop import courses_of, follow
from distributed_preferences import learn
from rl_world import OracleScorer, tiny_policy, world

from data.schema import Sampling, Verdict
from prm import next_token
from prm.checkpoint import load_latest, save_model, save_together
from prm.fit import FitConfig, fit
from reasoning_rl.advantages import make_experience
from reasoning_rl.config import PPOConfig
from reasoning_rl.experience import collect, rollout_metrics, score_rollout, task_rewards
from reasoning_rl.learner import Learner
from reasoning_rl.models import critic_from_policy
from reasoning_rl.ptx import Demonstrations
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.runtime import make_accelerator, running_engine
from reasoning_rl.sft import NextToken, encode_pairs
from reasoning_rl.shares import gather, own_problems
from reasoning_rl.update import ppo_update

UPDATES = 10
SETTINGS = {
    "policy": "in-memory",
    "prm": "oracle",
    "preset": "vanilla",
    "iterations": UPDATES,
    "rollout": {"problems_per_iteration": 4, "samples_per_problem": 2, "max_new_tokens": 16},
    "kl": {"coef": 0.05, "target": 1.0},
    "critic": {"learning_rate": 1e-3, "value_norm": True, "value_clip_range": 0.2},
    "reward": {"form": "delta", "normalise": "standardise", "clip": 5.0},
    # Micro-batches of one or two rows: the processes would have unequal numbers of them.
    "update": {
        "minibatch_size": 8,
        "micro_batch_tokens": 160,
        "gradient_checkpointing": True,
        "learning_rate": 1e-3,
        "advantage_norm": True,
        "entropy_coef": 0.01,
        "ptx_coef": 0.1,
    },
    "reference_ema": 0.1,
    "demonstrations": "in-memory",
}


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def __call__(self, iteration: int, metrics) -> None:
        self.rows.append({k: float(v) for k, v in metrics.items() if not k.startswith(("time/", "memory/"))})

    def rewind(self, iteration: int) -> None:
        return


def main(output_dir: Path) -> None:
    accelerator = make_accelerator()
    torch.set_num_threads(1)
    next_token.CHUNK, next_token.SMALL = 8, 0  # logits in chunks, of which the processes have unequal numbers
    tokenizer, problems = world(8)
    policy = tiny_policy(tokenizer, hidden=16)
    with torch.no_grad():  # sharper than random: answers end, and their lengths differ
        for parameter in policy.parameters():
            parameter.mul_(3.0)

    def new_learner(policy) -> Learner:
        critic = critic_from_policy(policy)
        # A head of zeros sends no gradient below it, and Adam would make steps of rounding noise there.
        torch.nn.init.normal_(critic.score.weight, std=0.1)
        return Learner(
            PPOConfig.from_preset(SETTINGS | {"output_dir": str(output_dir)}),
            accelerator,
            policy=copy.deepcopy(policy),
            reference=copy.deepcopy(policy),
            critic=critic,
        )

    learner = new_learner(policy)
    config = learner.config
    world_size, rank = accelerator.num_processes, accelerator.process_index
    pairs = encode_pairs(tokenizer, [(f"{p.text}\n", p.solution) for p in problems])
    ptx = Demonstrations(pairs, batch_size=5, seed=3)
    recorder = HFGenerator(policy, tokenizer, seed=0)
    sampling = Sampling(max_new_tokens=16, temperature=1.0, n=2)
    torch.manual_seed(config.seed)
    rows = []
    for iteration in range(1, UPDATES + 1):
        batch = problems[:4] if iteration % 2 else problems[4:]
        whole = {p.id: i for i, p in enumerate(batch)}
        everything = collect(
            recorder, tokenizer, batch, sampling, render=lambda t: f"{t}\n", splitter="newline"
        )
        mine = [whole[p.id] for p in own_problems(batch, rank=rank, world=world_size)]
        rollout = pick(everything, [2 * i + g for i in mine for g in range(2)])
        scores = score_rollout(OracleScorer(problems), grade, rollout)
        rollout, scores = gather(rollout, scores, accelerator, num_problems=len(mine))
        rewards, totals = task_rewards(rollout, scores, config.reward, learner.moments)
        experience, metrics = make_experience(learner, rollout, rewards)
        metrics |= ppo_update(learner, experience, train_policy=True, ptx=ptx)
        learner.refresh_policy()
        learner.update_reference()
        learner.kl.update(metrics["policy/kl_per_response"], 8)
        metrics |= rollout_metrics(rollout, scores, totals, config.reward)
        rows.append(metrics | {"kl/coef": learner.kl.coef})
        if iteration == 5:  # the second half runs on what a checkpoint held
            save_together(output_dir, iteration, learner.parts(), accelerator=accelerator)
            learner = new_learner(tiny_policy(tokenizer, seed=4, hidden=16))
            place = {"rank": rank, "world": world_size}
            assert load_latest(output_dir, learner.parts(), **place) == 5
            learner.refresh_policy()
    sft = tiny_policy(tokenizer, seed=2, hidden=16)
    log = Log()
    # 7 of 8 pairs in batches of 4: the last batch is odd.
    fit(
        sft,
        pairs[:7],
        NextToken(),
        FitConfig(batch_size=4, epochs=1, learning_rate=1e-3, micro_batch_tokens=256, save_every=1),
        accelerator=accelerator,
        run_dir=output_dir / "sft",
        log=log,
    )
    loops = {course: Log() for course in courses_of(accelerator)}
    weights = {course: follow(course, output_dir / course, accelerator, log) for course, log in loops.items()}
    learned, weights["preferences"] = learn(output_dir, accelerator, Log)
    numbers = {
        **learned,
        **{course: log.rows for course, log in loops.items()},
        "engine": running_engine(accelerator),
        "ppo": [{k: float(v) for k, v in row.items()} for row in rows],
        "moments": learner.moments.state_dict(),
        "value_norm": learner.value_norm.state_dict(),
        "sft": log.rows,
    }
    states = {name: part.state_dict() for name, part in learner.parts().items() if name == "critic"}
    if accelerator.is_main_process:
        save_model(output_dir / "ppo", learner.policy, tokenizer)
        save_model(output_dir / "sft_model", sft, tokenizer)
        torch.save({k: v.clone() for k, v in states["critic"].items()}, output_dir / "critic.pt")
        for course, state in weights.items():
            torch.save(state, output_dir / f"{course}.pt")
        (output_dir / "numbers.json").write_text(json.dumps(numbers), encoding="utf-8")
    accelerator.wait_for_everyone()


def grade(problem, response) -> Verdict:
    """Something that a random policy gets right now and then, or nobody can judge."""
    statuses = ("correct", "wrong", "wrong", "unjudged")
    return Verdict(statuses[len(response) % 4])


def pick(rollout, rows):
    """The given rows of a rollout."""
    values = {}
    for name, value in vars(rollout).items():
        values[name] = [value[i] for i in rows] if isinstance(value, list) else value[rows]
    return type(rollout)(**values)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
