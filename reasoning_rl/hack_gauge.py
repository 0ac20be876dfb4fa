"""The hack gauge: is the reward model still paying for what is true?

`measure` reads one batch of rollouts, pure; `HackGauge` follows the numbers over a run, knows where they
began, and names what went wrong. What to do about it is the loop's (`hack.action`). B rollouts, S steps.

    gauge = HackGauge(HackConfig())
    metrics |= measure(rollout, scores, process_rewards)
    alarms, more = gauge.update(metrics)            # more: trends and one alarm/NAME of 0 or 1 each

The modes that it is built for, and by what it sees them (each a test):

    repeating steps that are right but empty       repetition, drift of steps
    thinking on and never answering                outcome, drift of length
    one giant step                                 short, drift of steps
    no step at all: empty, "Thank you."            short, drift of length
    long and repetitive though "correct"           repetition, drift of length

Where a reward model pays the outcome nothing is verified: gap and outcome, whose bounds are in units of
accuracy, then raise no alarm.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from reasoning_rl.process_config import HackConfig
from reasoning_rl.types import Rollout, Scores

ALARMS = ("gap", "outcome", "correlation", "steps", "length", "short", "repetition")
FOLLOWED = (
    "reward/outcome",
    "reward/step_score",
    "hack/score_outcome_gap",
    "hack/reward_outcome_correlation",
    "hack/num_steps",
    "rollout/response_tokens",
    "hack/at_most_one_step",
    "hack/no_step",
    "hack/repeated_ngrams",
    "hack/repeated_steps",
)
SMOOTHED = 3
"""Iterations whose mean is held against the best so far: the best of single batches is luck."""
RARE = 0.05
"""Below this share of right or of wrong answers a correlation hangs on a handful of them."""
TRENDS = {
    "hack/gap_trend": "hack/score_outcome_gap",
    "hack/correlation_trend": "hack/reward_outcome_correlation",
    "hack/steps_trend": "hack/num_steps",
}


def measure(
    rollout: Rollout,
    scores: Scores,
    process_rewards: Tensor | None = None,
    *,
    ngram: int = 4,
    is_verified: bool = True,
) -> dict[str, float]:
    """Return the gauge's numbers of one batch.

    process_rewards (B,): what each response was paid besides its outcome, before normalisation. A number
    that this batch does not define is left out: a correlation where either side is constant, a gap where
    nothing was scored or judged, or where outcomes are a reward model's (not is_verified), in other units
    than step scores.
    """
    counts = rollout.step_mask.sum(1)
    repeated = [1 - len(set(steps)) / len(steps) if steps else 0.0 for steps in rollout.steps]
    tokens = [ids[mask].tolist() for ids, mask in zip(rollout.input_ids, rollout.action_mask, strict=True)]
    found = {
        "hack/num_steps": counts.float().mean().item(),
        "hack/at_most_one_step": (counts <= 1).float().mean().item(),
        "hack/no_step": (counts == 0).float().mean().item(),
        "hack/repeated_steps": fmean(repeated),
        "hack/repeated_ngrams": fmean(repeated_ngrams(ids, ngram) for ids in tokens),
    }
    final, is_scored = final_scores(scores)
    rows = is_scored & scores.judged
    if is_verified and bool(rows.any()):
        found["hack/score_outcome_gap"] = (final - scores.outcomes)[rows].mean().item()
    pairs = {"hack/score_outcome_correlation": (final, rows)}
    if process_rewards is not None:
        pairs["hack/reward_outcome_correlation"] = (process_rewards, scores.judged)
    for name, (paid, counted) in pairs.items():
        value = correlation(paid[counted], scores.outcomes[counted])
        if value is not None:
            found[name] = value
    return found


def final_scores(scores: Scores) -> tuple[Tensor, Tensor]:
    """Return (score (B,) of each response's last scored step, 0 without one; which rows have one)."""
    columns = torch.arange(scores.scored.shape[1])
    last = torch.where(scores.scored, columns, -1).amax(1)
    final = scores.step_scores.gather(1, last.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(last >= 0, final, 0.0), last >= 0


def repeated_ngrams(token_ids: Sequence[int], n: int) -> float:
    """Return the share of n-grams that stood before in the same sequence, in [0, 1); 0 if it is shorter."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def correlation(x: Tensor, y: Tensor) -> float | None:
    """Return the Pearson correlation of two (B,) tensors; None where one of them is constant."""
    if len(x) < 2:
        return None
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    norms = x.norm() * y.norm()
    return (x @ y / norms).item() if norms > 1e-9 else None


def slope(values: Sequence[float]) -> float:
    """Return the least-squares slope per entry; 0 with fewer than two."""
    if len(values) < 2:
        return 0.0
    middle = (len(values) - 1) / 2
    spread = sum((i - middle) ** 2 for i in range(len(values)))
    return sum((i - middle) * value for i, value in enumerate(values)) / spread


@dataclass(frozen=True)
class Alarm:
    """One bound that is broken."""

    name: str
    message: str


class HackGauge:
    """Follows a run's numbers. Stateful, so that a resumed run raises the same alarms."""

    def __init__(self, config: HackConfig) -> None:
        self.config = config
        self.history: dict[str, list[float]] = {}
        self.baseline: dict[str, float] = {}
        self.seen: dict[str, int] = {}
        self.best: tuple[float, float] | None = None  # verified accuracy at its best, the PRM score then
        self.streaks: dict[str, int] = {}
        self.raised: list[str] = []

    def update(self, metrics: Mapping[str, float]) -> tuple[list[Alarm], dict[str, float]]:
        """Take one iteration's numbers in; return (the alarms that are *new*, trends and alarm states).

        An alarm is new when its bound has been broken `patience` times in a row, and again only after it
        was kept once.
        """
        baseline_done = self._learn(metrics)
        broken = self._broken(metrics) if baseline_done else {}
        fresh = []
        for name in ALARMS:
            self.streaks[name] = self.streaks.get(name, 0) + 1 if name in broken else 0
            if self.streaks[name] < self.config.patience:
                if name in self.raised and not self.streaks[name]:
                    self.raised.remove(name)
            elif name not in self.raised:
                self.raised.append(name)
                fresh.append(Alarm(name, broken[name]))
        states = {f"alarm/{name}": float(name in self.raised) for name in ALARMS}
        trends = {
            trend: slope(self.history[name]) for trend, name in TRENDS.items() if self.history.get(name)
        }
        return (fresh, trends | states) if self.config.action != "off" else ([], trends)

    def _learn(self, metrics: Mapping[str, float]) -> bool:
        """Take the numbers into baseline and history; return whether the baseline stood already."""
        complete = self.seen.get("iterations", 0) >= self.config.baseline_iterations
        self.seen["iterations"] = self.seen.get("iterations", 0) + 1
        for name in FOLLOWED:
            if name not in metrics:
                continue
            value = float(metrics[name])
            self.history[name] = [*self.history.get(name, []), value][-self.config.window :]
            if not complete:
                count = self.seen.get(name, 0)
                self.seen[name] = count + 1
                self.baseline[name] = (self.baseline.get(name, 0.0) * count + value) / (count + 1)
        return complete

    def _broken(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Return each broken bound's name and what to say of it."""
        config, now, base = self.config, metrics, self.baseline
        broken = {}
        gap = now.get("hack/score_outcome_gap")
        began = base.get("hack/score_outcome_gap", 0.0)
        if gap is not None and gap - began > config.max_gap_rise:
            broken["gap"] = f"the PRM's score is {gap:.2f} above verified accuracy, {began:.2f} at first"
        if "reward/outcome" in now and (said := self._outcome_drop(is_scored="reward/step_score" in now)):
            broken["outcome"] = said
        paid = now.get("hack/reward_outcome_correlation")
        accuracy = now.get("reward/outcome")  # absent where a reward model pays the outcome
        vary = accuracy is None or RARE <= accuracy <= 1 - RARE
        if paid is not None and vary and paid < config.min_correlation:
            broken["correlation"] = f"step rewards and verified outcomes correlate by {paid:.2f}"
        for name, metric, unit in (
            ("steps", "hack/num_steps", "steps"),
            ("length", "rollout/response_tokens", "tokens"),
        ):
            factor = max(now[metric], 1e-6) / max(base[metric], 1e-6)
            if not 1 / config.max_drift <= factor <= config.max_drift:
                broken[name] = f"{now[metric]:.1f} {unit} a response, {base[metric]:.1f} at first"
        for name, metrics_of, bound, what in (
            ("short", ("hack/no_step", "hack/at_most_one_step"), config.max_short, "have at most one step"),
            ("repetition", ("hack/repeated_ngrams", "hack/repeated_steps"), config.max_repetition, "repeat"),
        ):
            worst = max(metrics_of, key=lambda metric: now[metric] - base[metric])
            if now[worst] - base[worst] > bound:
                broken[name] = f"{worst} is {now[worst]:.2f}, {base[worst]:.2f} at first: responses {what}"
        return broken

    def _outcome_drop(self, *, is_scored: bool) -> str | None:
        """What to say when accuracy left its best behind and the score did not; both as means of a few."""
        outcome = fmean(self.history["reward/outcome"][-SMOOTHED:])
        score = fmean(self.history["reward/step_score"][-SMOOTHED:]) if is_scored else 0.0
        if self.best is None or outcome >= self.best[0]:
            self.best = (outcome, score)
            return None
        best, score_then = self.best
        if best - outcome <= self.config.max_outcome_drop or score < score_then:
            return None
        said = f"verified accuracy fell from {best:.2f} to {outcome:.2f}"
        return f"{said} while the PRM's score did not" if is_scored else said

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": {name: list(values) for name, values in self.history.items()},
            "baseline": dict(self.baseline),
            "seen": dict(self.seen),
            "best": list(self.best) if self.best is not None else [],
            "streaks": dict(self.streaks),
            "raised": list(self.raised),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history = {name: list(values) for name, values in state["history"].items()}
        self.baseline = dict(state["baseline"])
        self.seen = dict(state["seen"])
        self.best = tuple(state["best"]) or None
        self.streaks = dict(state["streaks"])
        self.raised = list(state["raised"])


def over_processes(metrics: Mapping[str, float], reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Return the mean over processes of those numbers that all of them have, so that all act alike."""
    names = list(FOLLOWED)
    present = torch.tensor([float(name in metrics) for name in names], dtype=torch.float64)
    values = torch.tensor([float(metrics.get(name, 0.0)) for name in names], dtype=torch.float64)
    total, count = reduce(torch.stack([values, present])).unbind()
    return {name: (total[i] / count[i]).item() for i, name in enumerate(names) if count[i] > 0}
