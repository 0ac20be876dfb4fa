"""Settings that belong together: what the unset fields of a PPO run default to (sources: algorithms.md)."""

from typing import Any

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
}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
