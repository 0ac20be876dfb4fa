"""Score every step of a solution with a process reward model.

python examples/score_solution.py Qwen/Qwen2.5-Math-PRM-7B      # without a name the quickstart's
"""

import sys

from reasoning_rl.api import score_solution

PROBLEM = "Leo has 12. Gus has 5 fewer than Leo. Ned has 2 more than Gus. How many does Ned have?"
STEPS = ["Gus has 12 - 5 = 7", "Ned has 7 - 2 = 5", "#### 5"]  # the second step is the first wrong one


def main(prm="outputs/quickstart/prm/model", **options):
    scores = score_solution(prm, PROBLEM, STEPS, **options)
    for step, score in zip(STEPS, scores, strict=True):
        print(f"{score:.3f}  {step}")
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
