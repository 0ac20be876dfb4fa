"""Settings that belong together: what the unset fields of a PPO run default to (sources: algorithms.md)."""

from typing import Any, Literal

Preset = Literal[
    "ppo_max", "ppo_large_batch", "vanilla", "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "vine"
]
CRITIC_FREE = ("grpo", "rloo", "reinforce_pp", "vine")
"""Algorithms that go without a critic; each has a preset of its name."""


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


_GRPO: dict[str, Any] = {
    "algorithm": "grpo",
    "rollout": {"problems_per_iteration": 16, "samples_per_problem": 64},
    "reward": {"normalise": "off", "clip": None},
    "kl": {"coef": 0.04, "place": "loss", "estimator": "k3"},
    "update": {"minibatch_size": 1024, "learning_rate": 1e-6, "loss_aggregation": "sequence"},
}

PRESETS: dict[str, dict[str, Any]] = {
    # MOSS, arXiv 2307.04964, the starred items of its Fig. 5 and section 5 (values: see docs/algorithms.md).
    "ppo_max": {
        "rollout": {
            "problems_per_iteration": 128,
            "samples_per_problem": 1,
            "temperature": 0.8,
            "top_p": 0.9,
        },
        "reward": {"normalise": "standardise", "clip": 0.8},
        "kl": {"coef": 0.05},
        "critic": {"init": "prm", "pretrain_iterations": 2, "value_clip_range": 0.2},
        "update": {"minibatch_size": 32, "lam": 0.9, "advantage_norm": False, "max_grad_norm": 1.0},
    },
    # Xu et al., arXiv 2404.10719, appendix A.2.
    "ppo_large_batch": {
        "rollout": {"problems_per_iteration": 512, "samples_per_problem": 1, "top_k": 200},
        "reward": {"normalise": "off", "clip": 20.0},
        "kl": {"coef": 0.1},
        "critic": {
            "init": "policy",
            "pretrain_iterations": 0,
            "learning_rate": 5e-6,
            "value_clip_range": 0.2,
            "value_norm": True,
        },
        "update": {"minibatch_size": 128, "learning_rate": 1e-5, "lam": 1.0, "advantage_norm": True},
        "reference_ema": 0.001,
    },
    # Neither paper's additions: the floor of the ablations.
    "vanilla": {
        "rollout": {"problems_per_iteration": 128, "samples_per_problem": 1},
        "reward": {"normalise": "off", "clip": None},
        "kl": {"coef": 0.0},
        "critic": {"init": "policy", "pretrain_iterations": 0, "value_clip_range": None},
        "update": {"minibatch_size": 32, "lam": 0.95},
    },
    # DeepSeekMath, arXiv 2402.03300, section 4.2: 1024 answers, 64 a problem, used for a single update.
    "grpo": _GRPO,
    # arXiv 2503.20783: no division by the deviation, none by the length, no KL.
    "dr_grpo": merge(
        _GRPO,
        {
            "rollout": {"problems_per_iteration": 128, "samples_per_problem": 8},
            "kl": {"coef": 0.0},
            "group": {"divide_by_std": False},
            "update": {"minibatch_size": 128, "loss_aggregation": "fixed"},
        },
    ),
    # arXiv 2503.14476, section 4.1 (of 20480 tokens, 4096 are its overlong buffer: a fifth).
    "dapo": merge(
        _GRPO,
        {
            "rollout": {"problems_per_iteration": 512, "samples_per_problem": 16, "dynamic_rounds": 10},
            "kl": {"coef": 0.0},
            "update": {
                "minibatch_size": 512,
                "learning_rate": 1e-6,
                "loss_aggregation": "token",
                "clip_range_high": 0.28,
            },
        },
    ),
    # arXiv 2402.14740; one update a batch, where the ratio is 1 and nothing is clipped.
    "rloo": {
        "algorithm": "rloo",
        "rollout": {"problems_per_iteration": 128, "samples_per_problem": 4},
        "reward": {"normalise": "off", "clip": None},
        "kl": {"coef": 0.03},
        "group": {"baseline": "response"},
        "update": {"minibatch_size": 512, "learning_rate": 1e-6},
    },
    # arXiv 2501.03262: one answer a problem; group.baseline response is its variant for several.
    "reinforce_pp": {
        "algorithm": "reinforce_pp",
        "rollout": {"problems_per_iteration": 256, "samples_per_problem": 1},
        "reward": {"normalise": "off", "clip": 10.0},
        "kl": {"coef": 0.001},
        "group": {"baseline": "none"},
        "update": {"minibatch_size": 128, "learning_rate": 5e-7},
    },
    # arXiv 2410.01679 and its authors' configurations: only the outcome is paid, 9 completions a step.
    "vine": {
        "algorithm": "vine",
        "rollout": {
            "problems_per_iteration": 64,
            "samples_per_problem": 8,
            "temperature": 0.6,
            "top_p": 0.9,
        },
        "reward": {"form": "none", "normalise": "off", "clip": None},
        "kl": {"coef": 1e-4, "place": "loss", "estimator": "k3"},
        "group": {"vine_samples": 9},
        "update": {"epochs": 2, "minibatch_size": 64, "learning_rate": 1e-6, "advantage_norm": True},
    },
}
