"""Progress rewards, values of prefixes and VinePPO's advantages: hand-worked cases and slow references."""

from itertools import combinations

import pytest
import torch
from rl_scripted import gather
from rl_world import oracle_grader, world
from test_rl_ppo import learner_for, rollout_of, settings

from data.schema import Sample, Sampling
from prm.labelling.completer import Completer
from reasoning_rl.advantages import make_experience, make_group_experience
from reasoning_rl.config import RewardConfig
from reasoning_rl.experience import progress_advantages, step_and_outcome_rewards, task_rewards
from reasoning_rl.group import rloo
from reasoning_rl.moments import RunningMoments
from reasoning_rl.prefix_values import PrefixValues, pass_at
from reasoning_rl.shaping import place_on_last_action, shape_step_rewards
from reasoning_rl.types import Scores
from reasoning_rl.vine import vine_advantages, vine_of


def test_progress_is_what_a_step_adds_to_the_chance_of_success() -> None:
    scores = torch.tensor([[0.5, 0.8, 0.8, 0.2], [0.7, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4])
    out = shape_step_rewards(scores, mask, form="progress", start_scores=torch.tensor([0.4, 0.9, 0.3]))
    expected = [[0.1, 0.3, 0.0, -0.6], [-0.2, 0, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(out, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_progress_skips_steps_that_were_not_scored() -> None:
    scores = torch.tensor([[9.0, 0.6, 9.0, 0.9]])
    mask = torch.tensor([[False, True, False, True]])
    out = shape_step_rewards(scores, mask, form="progress", start_scores=torch.tensor([0.5]))
    torch.testing.assert_close(out, torch.tensor([[0, 0.1, 0, 0.3]]), rtol=1e-5, atol=1e-6)


def test_progress_without_a_prover_starts_from_the_mean_first_score_of_the_problems_samples() -> None:
    tokenizer, problems = world(2)
    rollout = gather(
        tokenizer, [problems[0], problems[0], problems[1]], ["Ann has\nBob has", "Ann has", "Bob has"]
    )
    step_scores = torch.tensor([[0.4, 0.9], [0.8, 0.0], [0.3, 0.0]])
    scores = Scores(step_scores, rollout.step_mask, torch.ones(3), torch.ones(3, dtype=torch.bool))
    steps, _ = step_and_outcome_rewards(rollout, scores, RewardConfig(form="progress"))
    torch.testing.assert_close(
        steps, torch.tensor([[-0.2, 0.5], [0.2, 0.0], [0.0, 0.0]]), rtol=1e-5, atol=1e-6
    )


def test_a_truncated_answers_progress_is_never_above_nothing() -> None:
    tokenizer, problems = world(1)
    rollout = gather(tokenizer, problems, ["Ann has\nBob has\nCal has"], cut=[0])
    scores = Scores(
        torch.tensor([[0.2, 0.9, 0.6]]),
        rollout.step_mask,
        torch.zeros(1),
        torch.ones(1, dtype=torch.bool),
        start_scores=torch.tensor([0.5]),
    )
    steps, _ = step_and_outcome_rewards(rollout, scores, RewardConfig(form="progress"))
    torch.testing.assert_close(steps, torch.tensor([[-0.3, 0.0, -0.3]]), rtol=1e-5, atol=1e-6)


def test_progress_goes_to_the_tokens_of_its_step_and_is_no_reward() -> None:
    """Two answers that differ in their second step's score alone differ in advantage on that step and the
    next, which is measured from it; as rewards the differences would have cancelled before the last."""
    tokenizer, problems = world(1)
    rollout = gather(tokenizer, [problems[0]] * 2, ["Ann has\nBob has\nCal has"] * 2)
    scores = Scores(
        torch.tensor([[0.6, 0.2, 0.7], [0.6, 0.9, 0.7]]),
        rollout.step_mask,
        torch.ones(2),
        torch.ones(2, dtype=torch.bool),
        start_scores=torch.tensor([0.5, 0.5]),
    )
    config = RewardConfig(form="progress", step_weight=0.5, normalise="off", clip=None)
    plane = progress_advantages(rollout, scores, config, RunningMoments())
    starts = int(rollout.action_mask[0].nonzero()[0])
    for row, gains in enumerate([(0.1, -0.4, 0.5), (0.1, 0.3, -0.2)]):
        begin = starts
        ends = rollout.step_ends[row].tolist()
        for k, gain in enumerate(gains):
            stop = ends[k] + 1 if k < 2 else plane.shape[1]
            expected = torch.full((stop - begin,), 0.5 * gain) * rollout.action_mask[row, begin:stop]
            torch.testing.assert_close(plane[row, begin:stop], expected, rtol=1e-5, atol=1e-6)
            begin = stop
    assert not plane[:, :starts].any()
    rewards, _ = task_rewards(rollout, scores, config, RunningMoments())
    alone, _ = task_rewards(rollout, scores, config.model_copy(update={"form": "none"}), RunningMoments())
    assert torch.equal(rewards, alone)
    assert progress_advantages(rollout, scores, RewardConfig(form="delta"), RunningMoments()) is None


def test_vine_pays_the_outcome_by_steps_and_what_else_is_paid_from_its_token_on(tmp_path) -> None:
    tokenizer, problems = world(1)
    rollout = gather(tokenizer, problems, ["Ann has\nBob has"])
    mask = rollout.action_mask
    config = settings(
        tmp_path, algorithm="vine", reward={"form": "none", "outcome_weight": 0.5, "normalise": "off"}
    )
    penalty = -0.1 * mask
    rewards = penalty + place_on_last_action(torch.tensor([0.5]), mask)
    values = (torch.tensor([[0.6, 0.9]]), torch.tensor([0.4]), 70)
    advantages, metrics = vine_of(rollout, rewards, torch.tensor([1.0]), values, config)
    first, last = int(mask[0].nonzero()[0]), int(mask[0].nonzero()[-1])
    # The first step: 0.5 (0.6 - 0.4), the last: 0.5 (1 - 0.6); and 0.1 less for each token still to come.
    left = last - first + 1
    assert advantages[0, first] == pytest.approx(0.1 - 0.1 * left)
    assert advantages[0, last] == pytest.approx(0.2 - 0.1)
    assert metrics == {"rollout/value_tokens": 70.0, "vine/start_value": pytest.approx(0.4)}


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "reinforce_pp", "grpo"])
def test_every_algorithm_adds_progress_to_its_advantages(tmp_path, algorithm) -> None:
    """Against the same rollout without it: what is added is the plane, whitened with the rest or not."""
    tokenizer, problems = world(4)
    found = {}
    for form in ("none", "progress"):
        over = {
            "algorithm": algorithm,
            "reward": {"form": form, "step_weight": 0.5, "normalise": "off", "clip": None},
            "kl": {"coef": 0.0},
            "update": {"advantage_norm": False, "advantage_clip": None, "minibatch_size": 8},
            "rollout": {"problems_per_iteration": 4, "samples_per_problem": 2, "max_new_tokens": 12},
        }
        config = settings(tmp_path, **over)
        learner = learner_for(config, tokenizer)
        rollout = rollout_of(learner, tokenizer, problems)
        noise = torch.rand(rollout.step_mask.shape, generator=torch.Generator().manual_seed(0))
        rows = len(rollout.lengths)
        scores = Scores(
            noise, rollout.step_mask, torch.arange(rows) % 2.0, torch.ones(rows, dtype=torch.bool)
        )
        rewards, _ = task_rewards(rollout, scores, config.reward, learner.moments)
        plane = progress_advantages(rollout, scores, config.reward, learner.moments)
        if algorithm == "ppo":
            experience, _ = make_experience(learner, rollout, rewards, step_advantages=plane)
        else:
            experience, _ = make_group_experience(learner, rollout, scores, rewards)
        found[form] = experience.advantages
    assert plane.abs().max() > 0.01
    if algorithm == "reinforce_pp":
        mask = rollout.action_mask
        raw = reinforce_pp_returns(rollout, rewards, mask) + plane
        expected = (raw - raw[mask].mean()) / raw[mask].std(unbiased=False) * mask
    else:
        expected = found["none"] + plane
    torch.testing.assert_close(found["progress"], expected, rtol=1e-4, atol=1e-4)


def reinforce_pp_returns(rollout, rewards, mask) -> torch.Tensor:
    return rewards.flip(1).cumsum(1).flip(1) * mask


@pytest.mark.parametrize(("num", "correct", "k"), [(6, 2, 4), (5, 0, 2), (4, 4, 1), (7, 3, 3), (3, 1, 3)])
def test_best_of_k_is_the_share_of_draws_of_k_that_hold_a_right_one(num, correct, k) -> None:
    draws = list(combinations([True] * correct + [False] * (num - correct), k))
    assert pass_at(num, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


class Answers:
    """A generator whose completions end right as often as a table says for each prompt."""

    def __init__(self, right: dict[str, int], problems) -> None:
        self.right, self.answers, self.asked = right, {p.text: p.answer for p in problems}, []

    def generate(self, prompts, sampling: Sampling) -> list[list[Sample]]:
        self.asked += prompts
        out = []
        for prompt in prompts:
            answer = next(a for text, a in self.answers.items() if prompt.startswith(text))
            texts = [f"#### {answer if i < self.right[prompt] else -1}" for i in range(sampling.n)]
            out.append([Sample((1,), (1, 2, 3), (0.0,) * 3, text, "stop") for text in texts])
        return out


def test_values_of_prefixes_are_success_rates_each_prefix_asked_once() -> None:
    tokenizer, problems = world(2)
    first, second = (p.solution.split("\n") for p in problems)
    responses = [problems[0].solution, f"{first[0]}\n#### 1", problems[1].solution, ""]
    rollout = gather(tokenizer, [problems[0], problems[0], problems[1], problems[1]], responses)
    prompts = {}
    for problem, lines in zip(problems, (first, second), strict=True):
        for k in range(len(lines)):
            prompts[f"{problem.text}\n" + "".join(f"{line}\n" for line in lines[:k])] = k + 1
    generator = Answers(prompts, problems)
    completer = Completer(generator, oracle_grader, lambda text: f"{text}\n", Sampling(n=8))
    values, starts, tokens = PrefixValues(completer).estimate(rollout, torch.tensor([1.0, 0, 1, 0]))
    assert starts.tolist() == [1 / 8, 1 / 8, 1 / 8, 1 / 8]
    for row, lines in ((0, first), (2, second)):
        expected = [(k + 1) / 8 for k in range(1, len(lines))] + [1.0]  # the last: its outcome
        assert values[row, : len(lines)].tolist() == expected
    assert values[1, :2].tolist() == [2 / 8, 0.0] and values[3].abs().sum() == 0
    assert sorted(generator.asked) == sorted(prompts)
    assert tokens == 8 * 3 * len(prompts)
    best, _, _ = PrefixValues(completer, best_of=2).estimate(rollout, torch.zeros(4))
    assert best[0, 0].item() == pytest.approx(1 - (6 * 5) / (8 * 7))


def test_where_no_completion_can_be_judged_the_value_before_the_step_stays() -> None:
    from data.schema import Verdict

    tokenizer, problems = world(1)
    rollout = gather(tokenizer, problems, [problems[0].solution])
    lines = problems[0].solution.split("\n")

    def grader(problem, response):
        return Verdict("unjudged") if response.startswith(lines[0]) else oracle_grader(problem, response)

    everything = {
        f"{problems[0].text}\n" + "".join(f"{line}\n" for line in lines[:k]): 4 for k in range(len(lines))
    }
    completer = Completer(Answers(everything, problems), grader, lambda t: f"{t}\n", Sampling(n=8))
    values, starts, _ = PrefixValues(completer).estimate(rollout, torch.ones(1))
    assert starts.item() == 0.5 and values[0].tolist() == [0.5] * (len(lines) - 1) + [1.0]


def slow_vine(final, other, start, values, ends, mask, gamma) -> list[float]:
    """One row, token by token, from the definition."""
    actions = [t for t in range(len(mask)) if mask[t]]
    out = [0.0] * len(mask)
    for t in actions:
        step = next((k for k, end in enumerate(ends) if t <= end), max(len(ends) - 1, 0))
        before = start if step == 0 else values[step - 1]
        after = final if step >= len(ends) - 1 else values[step]
        later = [j for j in actions if j >= t]
        out[t] = after - before + sum(gamma ** (j - t) * other[j] for j in later)
    return out


def test_vine_advantages_by_hand() -> None:
    # Tokens 1-2 are step 0, 3-4 step 1 with the end of the answer; V 0.5 -> 0.25, then right.
    advantages = vine_advantages(
        torch.tensor([1.0]),
        torch.zeros(1, 6),
        torch.tensor([0.5]),
        torch.tensor([[0.25, 9.0]]),
        torch.tensor([[2, 3]]),
        torch.tensor([[True, True]]),
        torch.tensor([[False, True, True, True, True, False]]),
    )
    assert advantages.tolist() == [[0, -0.25, -0.25, 0.75, 0.75, 0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_vine_advantages_against_the_definition(gamma) -> None:
    torch.manual_seed(1)
    num_steps, lengths, width = [3, 1, 0, 4], [10, 6, 4, 11], 13
    mask = (torch.arange(width) >= 2) & (torch.arange(width) < torch.tensor(lengths)[:, None])
    values, start, final = torch.rand(4, 4), torch.rand(4), torch.rand(4)
    other = torch.randn(4, width) * mask
    ends = torch.tensor([[3, 5, 8, 0], [4, 7, 7, 7], [0, 0, 0, 0], [2, 3, 7, 10]])
    step_mask = torch.arange(4) < torch.tensor(num_steps)[:, None]
    actual = vine_advantages(final, other, start, values, ends, step_mask, mask, gamma=gamma)
    for row in range(4):
        n = num_steps[row]
        expected = slow_vine(
            final[row].item(),
            other[row].tolist(),
            start[row].item(),
            values[row].tolist(),
            ends[row, :n].tolist(),
            mask[row].tolist(),
            gamma,
        )
        torch.testing.assert_close(actual[row], torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalise", ["off", "scale"])
def test_with_the_token_baseline_the_outcome_keeps_that_of_responses(tmp_path, normalise) -> None:
    tokenizer, problems = world(4)
    config = settings(
        tmp_path,
        algorithm="rloo",
        group={"baseline": "token"},
        reward={"form": "min", "step_weight": 1.0, "normalise": normalise, "clip": None},
        kl={"coef": 0.0},
        update={"advantage_norm": False, "advantage_clip": None, "minibatch_size": 12},
        rollout={"problems_per_iteration": 4, "samples_per_problem": 3, "max_new_tokens": 12},
    )
    learner = learner_for(config, tokenizer)
    rollout = rollout_of(learner, tokenizer, problems)
    rows = len(rollout.lengths)
    noise = torch.rand(rollout.step_mask.shape, generator=torch.Generator().manual_seed(0))
    scores = Scores(noise, rollout.step_mask, torch.arange(rows) % 2.0, torch.ones(rows, dtype=torch.bool))
    rewards, _ = task_rewards(rollout, scores, config.reward, learner.moments)
    experience, _ = make_group_experience(learner, rollout, scores, rewards)
    mask, scale = rollout.action_mask, 1.0 if normalise == "off" else learner.moments.std
    outcome = place_on_last_action(scores.outcomes * rollout.complete, mask) / scale
    expected = rloo(rewards - outcome, mask, group_size=3, baseline="token")
    expected = expected + rloo(outcome, mask, group_size=3, baseline="response")
    torch.testing.assert_close(experience.advantages, expected, rtol=1e-4, atol=1e-5)
