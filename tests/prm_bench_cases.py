"""Items and published numbers shared by the tests of the step-score benchmarks."""

import numpy as np

from data.schema import StepSolution
from eval.prm_benchmarks.items import Item


def item(scores, first_error=None, labels=None, subset="", neutral=None, **fields) -> Item:
    """An item with as many steps as scores; labels follow from the first error unless given."""
    num_steps = len(scores)
    if labels is None:
        known = num_steps if first_error in (None, -1) else first_error
        labels = [1.0] * known + ([0.0] + [None] * (num_steps - known - 1) if known < num_steps else [])
    solution = StepSolution(
        fields.pop("problem", "p"),
        tuple(f"s{k}" for k in range(num_steps)),
        tuple(labels),
        first_error=first_error,
        **fields,
    )
    return Item(subset, solution, tuple(scores), neutral)


def random_scores(items: list[Item], seed: int) -> list[Item]:
    """The items with scores that know a little of the labels, ties and unscored steps included."""
    rng = np.random.default_rng(seed)
    scored = []
    for one in items:
        labels = [0.5 if label is None else label for label in one.solution.labels]
        row = np.clip(0.4 * rng.random(len(labels)) + 0.3 * np.asarray(labels) + 0.2, 0, 1).round(2)
        scored.append(Item(one.subset, one.solution, tuple(row.tolist())))
    return scored


# ProcessBench, error and correct accuracy and F1 in per cent, by model and subset. arXiv:2412.06559, Table 3.
PROCESSBENCH = {
    "Math-Shepherd-7B": [(32.4, 91.7, 47.9), (18.0, 82.0, 29.5), (15.0, 71.1, 24.8), (14.2, 73.0, 23.8)],
    "RLHFlow-Mistral-8B": [(33.8, 99.0, 50.4), (21.7, 72.2, 33.4), (8.2, 43.1, 13.8), (9.6, 45.2, 15.8)],
    "RLHFlow-Deepseek-8B": [(24.2, 98.4, 38.8), (21.4, 80.0, 33.8), (10.1, 51.0, 16.9), (10.1, 51.9, 16.9)],
    "Skywork-1.5B": [(50.2, 71.5, 59.0), (37.9, 65.3, 48.0), (15.4, 26.0, 19.3), (13.6, 32.8, 19.2)],
    "Skywork-7B": [(61.8, 82.9, 70.8), (43.8, 69.2, 53.6), (17.9, 31.9, 22.9), (14.0, 41.9, 21.0)],
    "Qwen2.5-Math-7B-PRM800K": [
        (53.1, 95.3, 68.2),
        (48.0, 90.1, 62.6),
        (35.7, 87.3, 50.7),
        (29.8, 86.3, 44.3),
    ],
}
AVERAGES = {
    "Math-Shepherd-7B": 31.5,
    "RLHFlow-Mistral-8B": 28.4,
    "RLHFlow-Deepseek-8B": 26.6,
    "Skywork-1.5B": 36.4,
    "Skywork-7B": 42.1,
    "Qwen2.5-Math-7B-PRM800K": 56.5,
}

# PRMBench's leaderboard: overall, then classes and category means in its order.
PRMBENCH = """
Skywork-PRM-1.5B        61.1 | 52.0 56.4 54.2 | 64.8 64.9 63.3 66.5 64.9 | 57.5 63.3 91.1 70.7
Skywork-PRM-7B          65.1 | 56.4 62.8 59.6 | 69.4 67.1 67.7 69.9 68.5 | 60.9 65.8 93.2 73.3
Llemma-PRM800k-7B       52.0 | 49.3 53.4 51.4 | 56.4 47.1 46.7 53.3 50.9 | 51.0 53.5 93.6 66.0
MathShepherd-Mistral-7B 47.0 | 44.0 50.3 47.1 | 49.4 44.5 41.3 47.7 45.7 | 47.2 48.6 86.1 60.7
ReasonEval-34B          60.5 | 54.8 48.1 51.5 | 66.4 60.3 57.8 67.5 63.0 | 57.7 64.3 97.2 73.1
Qwen2.5-Math-PRM-7B     65.5 | 49.0 55.1 52.1 | 71.8 67.3 66.3 78.5 71.0 | 57.6 69.1 99.7 75.5
Qwen2.5-Math-PRM-72B    68.2 | 50.4 58.8 54.6 | 73.7 71.1 72.2 78.6 73.9 | 60.3 71.2 99.4 77.0
"""
