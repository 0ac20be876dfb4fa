"""PPO-max with the PRM's step scores as rewards: `accelerate launch scripts/ppo_prm.py --config FILE`.

Same as `stepwell ppo`.
"""

import sys

from reasoning_rl.cli import main

if __name__ == "__main__":
    main(["ppo", *sys.argv[1:]])
