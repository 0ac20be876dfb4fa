"""A splitter, a step scorer, a grader and problems of your own, plugged in by name or as they are.

python examples/own_plugins.py      # after the quickstart; docs/plugins.md has every kind
"""

import sys

from reasoning_rl.api import run_benchmark, train_ppo


def problems(split):
    """Rows of a benchmark, `--problems own_plugins:problems` on the command line."""
    first = 1 if split == "train" else 100
    return [{"question": f"Ann has {n}. How many?", "answer": n} for n in range(first, first + 40)]


def split(text):
    """A step a line, but for lines of less than three characters."""
    return [line.strip() for line in text.splitlines() if len(line.strip()) >= 3]


def score(problem, steps):
    """A step scorer: how much of a step is digits."""
    return [sum(c.isdigit() for c in step) / len(step) for step in steps]


def grade(response, answer):
    """Right where the answer is the last word."""
    return response.split()[-1:] == [answer]


def main(policy="outputs/quickstart/sft/model", output_dir="outputs/examples/plugins", **settings):
    rollout = {**settings.pop("rollout", {}), "splitter": f"{__name__}:split"}
    own = {"prm": score, "grader": grade, "rollout": rollout}
    folder = train_ppo(policy, f"{__name__}:problems", output_dir=output_dir, **own, **settings)
    result = run_benchmark(
        f"{__name__}:problems", model=folder, grader=grade, output_dir=f"{output_dir}/eval"
    )
    print(f"right: {result.accuracy.value:.2f}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:], iterations=1, num_validation=4)
