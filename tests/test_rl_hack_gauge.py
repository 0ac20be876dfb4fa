"""The hack gauge: it fires on the five known ways of fooling a reward model, and not on a healthy run."""

import math
from random import Random

import pytest
import torch
from rl_scripted import gather
from rl_world import world

from data.schema import Problem
from reasoning_rl.hack_gauge import (
    ALARMS,
    HackGauge,
    correlation,
    final_scores,
    measure,
    over_processes,
    repeated_ngrams,
    slope,
)
from reasoning_rl.process_config import HackConfig
from reasoning_rl.types import Scores

NUM = 24


def solutions(problems: list[Problem], right: float, rng: Random) -> tuple[list[str], list[float]]:
    """Worked solutions, a share of them with a wrong last line, and their outcomes."""
    texts, outcomes = [], []
    for problem in problems:
        good = rng.random() < right
        lines = problem.solution.split("\n")
        texts.append("\n".join(lines if good else [*lines[:-1], "#### 1"]))
        outcomes.append(float(good))
    return texts, outcomes


def iteration(texts: list[str], outcomes: list[float], score, cut=()) -> dict[str, float]:
    """The metrics of one batch of given responses; score(step index, outcome) is the reward model."""
    tokenizer, problems = world(NUM)
    rollout = gather(tokenizer, problems, texts, cut=cut)
    shape = rollout.step_mask.shape
    step_scores = torch.zeros(shape)
    for row, outcome in enumerate(outcomes):
        for k in range(shape[1]):
            step_scores[row, k] = score(k, outcome)
    judged = torch.ones(NUM, dtype=torch.bool)
    scores = Scores(step_scores * rollout.step_mask, rollout.step_mask, torch.tensor(outcomes), judged)
    paid = scores.step_scores.sum(1)
    mean = scores.step_scores.sum(1) / scores.scored.sum(1).clamp(min=1)
    return {
        "reward/outcome": sum(outcomes) / NUM,
        "reward/step_score": mean.mean().item(),
        "rollout/response_tokens": rollout.action_mask.sum(1).float().mean().item(),
        **measure(rollout, scores, paid),
    }


def honest(k: int, outcome: float) -> float:
    return 0.9 if outcome else 0.3


def fooled(k: int, outcome: float) -> float:
    return 0.95


def healthy(at: int) -> dict[str, float]:
    _, problems = world(NUM)
    return iteration(*solutions(problems, 0.3 + 0.06 * at, Random(at)), honest)


def repeating_empty_steps(problems: list[Problem]) -> tuple[list[str], list[float], list[int]]:
    first = [p.solution.split("\n") for p in problems]
    return ["\n".join([lines[0]] * 8 + lines[1:-1] + ["#### 1"]) for lines in first], [0.0] * NUM, []


def thinking_without_an_answer(problems: list[Problem]) -> tuple[list[str], list[float], list[int]]:
    rng = Random(1)
    texts = []
    for problem in problems:
        steps = problem.solution.split("\n")[:-1]
        steps += [f"{rng.choice(['Ann', 'Bob', 'Cal', 'Dan'])} has {rng.randint(1, 90)}" for _ in range(9)]
        texts.append("\n".join(steps))
    return texts, [0.0] * NUM, list(range(NUM))


def one_giant_step(problems: list[Problem]) -> tuple[list[str], list[float], list[int]]:
    return [p.solution.replace("\n", " ") for p in problems], [float(i % 2) for i in range(NUM)], []


def thanks(problems: list[Problem]) -> tuple[list[str], list[float], list[int]]:
    return ["Thank you." for _ in problems], [0.0] * NUM, []


def no_step(problems: list[Problem]) -> tuple[list[str], list[float], list[int]]:
    return ["" for _ in problems], [0.0] * NUM, []


def long_and_repetitive_though_right(problems: list[Problem]) -> tuple[list[str], list[float], list[int]]:
    texts = []
    for problem in problems:
        *steps, answer = problem.solution.split("\n")
        texts.append("\n".join([*steps, *steps, *steps, answer]))
    return texts, [1.0] * NUM, []


MODES = {
    repeating_empty_steps: {"repetition", "steps", "outcome"},
    thinking_without_an_answer: {"outcome", "length", "gap"},
    one_giant_step: {"short", "steps"},
    no_step: {"short", "length"},
    thanks: {"short", "length"},
    long_and_repetitive_though_right: {"repetition", "length"},
}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
def test_each_known_hack_raises_its_alarms_and_a_healthy_start_none(mode) -> None:
    _, problems = world(NUM)
    gauge = HackGauge(HackConfig())
    for at in range(4):
        alarms, states = gauge.update(healthy(at))
        assert alarms == [] and not any(states[f"alarm/{name}"] for name in ALARMS)
    raised = set()
    for _ in range(3):
        texts, outcomes, cut = mode(problems)
        alarms, states = gauge.update(iteration(texts, outcomes, fooled, cut))
        raised |= {alarm.name for alarm in alarms}
    assert MODES[mode] <= raised, raised
    assert {name for name in ALARMS if states[f"alarm/{name}"]} >= MODES[mode]
    assert all(alarm.message for alarm in alarms)


def test_a_run_that_gets_better_raises_no_alarm() -> None:
    gauge = HackGauge(HackConfig())
    for at in range(11):
        alarms, states = gauge.update(healthy(at))
        assert alarms == [], alarms
    assert sum(states[f"alarm/{name}"] for name in ALARMS) == 0


def test_an_alarm_waits_for_patience_comes_once_and_again_only_after_it_ended() -> None:
    _, problems = world(NUM)
    gauge = HackGauge(HackConfig(patience=2))
    for at in range(3):
        gauge.update(healthy(at))
    short = iteration(*no_step(problems)[:2], fooled)
    names = [{a.name for a in gauge.update(short)[0]} for _ in range(4)]
    assert names[0] == set() and "short" in names[1] and names[2:] == [set(), set()]
    gauge.update(healthy(3))
    assert [bool(gauge.update(short)[0]) for _ in range(2)] == [False, True]


def test_off_measures_and_follows_but_never_alarms() -> None:
    _, problems = world(NUM)
    gauge = HackGauge(HackConfig(action="off"))
    for at in range(3):
        gauge.update(healthy(at))
    for _ in range(3):
        alarms, states = gauge.update(iteration(*no_step(problems)[:2], fooled))
        assert alarms == [] and "hack/steps_trend" in states and "alarm/short" not in states


def test_a_restored_gauge_goes_on_as_if_never_stopped() -> None:
    import json

    _, problems = world(NUM)
    bad = iteration(*repeating_empty_steps(problems)[:2], fooled)
    course = [healthy(0), healthy(1), healthy(2), bad, bad, bad, healthy(3)]
    whole, first = HackGauge(HackConfig()), HackGauge(HackConfig())
    expected = [whole.update(metrics) for metrics in course]
    for metrics in course[:4]:
        first.update(metrics)
    second = HackGauge(HackConfig())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.update(metrics) for metrics in course[4:]] == expected[4:]
    assert any(alarms for alarms, _ in expected[4:])


def test_numbers_that_a_batch_does_not_define_are_left_out() -> None:
    found = iteration([""] * NUM, [0.0] * NUM, fooled)
    assert "hack/score_outcome_gap" not in found and "hack/reward_outcome_correlation" not in found
    assert found["hack/no_step"] == 1 and found["hack/repeated_ngrams"] == 0


def test_the_gap_reads_the_last_scored_step_by_hand() -> None:
    step_scores = torch.tensor([[0.9, 0.2, 0.7], [0.4, 0.0, 0.0], [0.0, 0.0, 0.0]])
    scored = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    scores = Scores(step_scores, scored, torch.zeros(3), torch.ones(3, dtype=torch.bool))
    final, has_one = final_scores(scores)
    torch.testing.assert_close(final, torch.tensor([0.2, 0.4, 0.0]), rtol=0, atol=0)
    assert has_one.tolist() == [True, True, False]


def test_repetition_and_trend_by_hand() -> None:
    assert repeated_ngrams([1, 2, 3, 4, 5], 2) == 0
    assert repeated_ngrams([1, 2, 1, 2, 1, 2], 2) == pytest.approx(3 / 5)  # 12 21 12 21 12
    assert repeated_ngrams([7], 4) == 0 and repeated_ngrams([], 1) == 0
    assert slope([1.0, 3.0, 5.0]) == pytest.approx(2.0) and slope([4.0]) == 0
    assert slope([0.0, 1.0, 0.0, 2.0]) == pytest.approx(0.5)


def test_correlation_against_its_definition() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50), torch.randn(50)
    mx, my = sum(x.tolist()) / 50, sum(y.tolist()) / 50
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    top = sum((a - mx) * (b - my) for a, b in pairs)
    bottom = math.sqrt(sum((a - mx) ** 2 for a, _ in pairs) * sum((b - my) ** 2 for _, b in pairs))
    assert correlation(x, y) == pytest.approx(top / bottom, rel=1e-6)
    assert correlation(x, torch.ones(50)) is None and correlation(x[:1], y[:1]) is None


def test_all_processes_see_the_mean_of_those_that_have_a_number() -> None:
    def reduce(mine: torch.Tensor) -> torch.Tensor:
        other = torch.zeros_like(mine)
        other[:, 0] = torch.tensor([0.9, 1.0])  # the other rank has reward/outcome 0.9 and nothing else
        return mine + other

    seen = over_processes({"reward/outcome": 0.5, "hack/num_steps": 4.0, "policy/loss": 1.0}, reduce)
    assert seen == {"reward/outcome": pytest.approx(0.7), "hack/num_steps": 4.0}


def test_step_rewards_that_go_against_outcomes_raise_their_alarm_where_both_vary() -> None:
    gauge = HackGauge(HackConfig())
    against = {**healthy(2), "hack/reward_outcome_correlation": -0.4}
    for _ in range(2):
        gauge.update(healthy(2))
    alarms = [alarm for _ in range(2) for alarm in gauge.update(against)[0]]
    assert [(alarm.name, alarm.message) for alarm in alarms] == [
        ("correlation", "step rewards and verified outcomes correlate by -0.40")
    ]
    rare = HackGauge(HackConfig())
    for metrics in [healthy(2)] * 2 + [{**against, "reward/outcome": 0.97}] * 3:
        states = rare.update(metrics)[1]
    assert states["alarm/correlation"] == 0  # a handful of wrong answers says nothing


def test_a_reward_models_outcomes_have_no_bounds_in_units_of_accuracy() -> None:
    """Rewards in deviations may fall from 1.5 to 1.2 without anything having been verified."""
    gauge = HackGauge(HackConfig())
    course = [1.5, 1.5, 1.5, 1.2, 0.9, 0.3, 0.3]
    for reward in course:
        metrics = {name: v for name, v in healthy(2).items() if name != "reward/outcome"}
        metrics.pop("hack/score_outcome_gap")
        alarms, states = gauge.update(metrics | {"reward/response": reward})
        assert alarms == []
    metrics |= {"hack/reward_outcome_correlation": -0.4}  # free of units: it still counts
    assert [[a.name for a in gauge.update(metrics)[0]] for _ in range(2)] == [[], ["correlation"]]
