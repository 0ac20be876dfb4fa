"""Run PPO on a reward function of your own; it is called with what it names, as docs/plugins.md has it.

python examples/ppo_own_reward.py Qwen/Qwen2.5-Math-1.5B-Instruct gsm8k      # without names the quickstart's
"""

import sys

from reasoning_rl.api import train_ppo


def short_and_right(responses, answers):
    """1 for a last line with the answer, less a little for every character."""
    return [float(r.endswith(f"#### {a}")) - 0.001 * len(r) for r, a in zip(responses, answers, strict=True)]


def main(
    policy="outputs/quickstart/sft/model",
    problems="arithmetic",
    output_dir="outputs/examples/ppo",
    **settings,
):
    return train_ppo(policy, problems, reward=short_and_right, output_dir=output_dir, **settings)


if __name__ == "__main__":
    print(main(*sys.argv[1:], iterations=2, num_validation=20))
