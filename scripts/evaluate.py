"""Evaluation on a benchmark: `python scripts/evaluate.py gsm8k --model PATH`. Same as `stepwell eval`."""

import sys

from reasoning_rl.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
