"""Supervised fine-tuning: `accelerate launch scripts/train_sft.py --config FILE`. Same as `stepwell sft`."""

import sys

from reasoning_rl.cli import main

if __name__ == "__main__":
    main(["sft", *sys.argv[1:]])
