"""Train a process reward model on a `datasets.Dataset` in TRL's stepwise form, in memory.

python examples/train_prm.py Qwen/Qwen2.5-Math-1.5B      # without a name the quickstart's SFT model
"""

import sys

from datasets import Dataset

from reasoning_rl.api import score_solution, train_prm

ROWS = {
    "prompt": ["What is 2 + 3?", "What is 4 + 4?"],
    "completions": [["2 + 3 is 5.", "#### 5"], ["4 + 4 is 9.", "#### 9"]],
    "labels": [[True, True], [False, False]],
}


def main(model="outputs/quickstart/sft/model", output_dir="outputs/examples/prm", **settings):
    folder = train_prm(Dataset.from_dict(ROWS), model=model, output_dir=output_dir, holdout=0, **settings)
    print(score_solution(folder, "What is 4 + 4?", ["4 + 4 is 8.", "#### 8"]))
    return folder


if __name__ == "__main__":
    main(*sys.argv[1:])
