"""Which problems an iteration takes. Seeded and stateful: a resumed run draws what the whole one draws."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.errors import UserError
from data.schema import Problem


@dataclass
class ProblemSampler:
    """Draws problems without replacement, epoch after epoch, the same for the same seed. Stateful."""

    problems: Sequence[Problem]
    seed: int
    epoch: int = 0
    position: int = 0

    def next(self, count: int) -> list[Problem]:
        """Return the next `count` problems; at the end of an epoch, the first ones of the next order."""
        picked: list[Problem] = []
        while len(picked) < count:
            order = self._order()
            take = order[self.position : self.position + count - len(picked)]
            picked += [self.problems[i] for i in take]
            self.position += len(take)
            if self.position == len(order):
                self.epoch, self.position = self.epoch + 1, 0
        return picked

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.problems), generator=generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it continues."""
        ids = "\n".join(problem.id for problem in self.problems)
        digest = hashlib.sha256(ids.encode()).hexdigest()[:16]
        return {"num_problems": len(self.problems), "seed": self.seed, "problems": digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"cannot resume: {name} was {state[name]} and is now {value}; restore the run's settings "
                    "(config.yaml in its folder) or choose another output_dir"
                )
        self.epoch, self.position = state["epoch"], state["position"]
