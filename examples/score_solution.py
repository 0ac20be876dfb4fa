"""Score every step of a solution with a process reward model.

python examples/score_solution.py Qwen/Qwen2.5-Math-PRM-7B      # without a name the quickstart's
"""

import sys

from reasoning_rl.api import score_solution

PROBLEM = "Ann has 12. Bob has 5 fewer than Ann. Cem has 2 more than Bob. How many does Cem have?"
STEPS = ["Bob has 12 - 5 = 7", "Cem has 7 + 2 = 10", "#### 10"]


def main(prm="outputs/quickstart/prm/model", **options):
    scores = score_solution(prm, PROBLEM, STEPS, **options)
    for step, score in zip(STEPS, scores, strict=True):
        print(f"{score:.3f}  {step}")
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
