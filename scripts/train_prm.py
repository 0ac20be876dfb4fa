"""Training a process reward model: `accelerate launch scripts/train_prm.py --config FILE`.

Same as `stepwell prm`.
"""

import sys

from reasoning_rl.cli import main

if __name__ == "__main__":
    main(["prm", *sys.argv[1:]])
