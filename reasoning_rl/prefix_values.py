"""Values of a rollout's step prefixes by sampling: the chance of success from the state after each step.

For VinePPO the completions are the trained policy's own (values of V^pi); for progress rewards they are a
prover's (Q^mu). B rollouts, S steps.

    values = PrefixValues(Completer(generator, grader, prompt=render, sampling=Sampling(n=9)))
    after_steps, at_start, tokens = values.estimate(rollout, outcomes)     # (B, S), (B,)
"""

from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from data.schema import Problem
from data.steps import split_steps
from prm.labelling.completer import Completer, Estimate, Prefix
from reasoning_rl.types import Rollout

Query = tuple[Problem, Prefix]
Values = tuple[Tensor, Tensor, int]
"""Values (B, S) after each step, values (B,) of the problems, tokens drawn for them."""


@dataclass
class PrefixValues:
    """A completer's success rates; best_of K: the chance that one of K completions is right."""

    completer: Completer
    best_of: int = 1

    def estimate(self, rollout: Rollout, outcomes: Tensor) -> Values:
        """Return (values (B, S) after each step, 0 off the steps; values (B,) of the problems; tokens drawn).

        outcomes (B,): 1 right, 0 wrong. After a response's last step there is nothing to complete: its value
        is its outcome. Equal prefixes of a problem are completed once. Where no completion could be judged,
        the value before the step stays.
        """
        before = self.completer.cost.tokens
        rows = [self._queries(rollout, row) for row in range(len(rollout.problems))]
        asked = {_key(query): query for queries in rows for query in queries}
        estimates = self.completer.evaluate(list(asked.values()))
        known = dict(zip(asked, map(self._value, estimates), strict=True))
        values = torch.zeros(rollout.step_mask.shape)
        starts = torch.zeros(len(rows))
        for row, queries in enumerate(rows):
            latest = 0.0
            found = []
            for query in queries:
                value = known[_key(query)]
                latest = latest if value is None else value
                found.append(latest)
            starts[row] = found[0]
            if rollout.steps[row]:
                values[row, : len(found)] = torch.tensor([*found[1:], float(outcomes[row])])
        return values, starts, self.completer.cost.tokens - before

    def _queries(self, rollout: Rollout, row: int) -> list[Query]:
        """The problem itself and its prefixes up to each step but the last, as the response has them."""
        text, problem = rollout.responses[row], rollout.problems[row]
        spans = split_steps(text, self.completer.splitter)[: len(rollout.steps[row])]
        return [(problem, ()), *((problem, (text[:end],)) for _, end in spans[:-1])]

    def _value(self, estimate: Estimate) -> float | None:
        if estimate.judged < self.best_of:
            return None
        return pass_at(estimate.judged, estimate.correct, self.best_of)


def pass_at(num: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of P(one of k is right) from `correct` of `num` samples, num >= k."""
    return 1.0 - comb(num - correct, k) / comb(num, k)  # arXiv:2107.03374, eq. 1


def _key(query: Query) -> tuple[str, Prefix]:
    return query[0].text, query[1]
