"""Pairwise reward model: `accelerate launch scripts/train_reward.py --config FILE`. Same as `stepwell rm`."""

import sys

from reasoning_rl.cli import main

if __name__ == "__main__":
    main(["rm", *sys.argv[1:]])
