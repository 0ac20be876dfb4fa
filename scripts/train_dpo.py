"""DPO: `accelerate launch scripts/train_dpo.py --config FILE`. Same as `stepwell dpo`."""

import sys

from reasoning_rl.cli import main

if __name__ == "__main__":
    main(["dpo", *sys.argv[1:]])
