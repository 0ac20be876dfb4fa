"""Two processes that meet in collectives, until the second one dies or falls silent."""

import os
import signal
import sys
import time

import torch

from data.errors import UserError
from reasoning_rl.heartbeat import watched
from reasoning_rl.runtime import make_accelerator


def main(how: str) -> None:
    accelerator = make_accelerator()
    try:
        with watched(accelerator):
            for count in range(1000):
                accelerator.reduce(torch.ones(1), "sum")
                if accelerator.process_index == 1 and count == 3:
                    os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
                time.sleep(0.05)
    except UserError as error:
        sys.stderr.write(f"stepwell: {error}\n")
        os._exit(2)


if __name__ == "__main__":
    main(sys.argv[1])
