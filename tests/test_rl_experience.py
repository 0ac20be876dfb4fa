"""From sampled text to token rewards: where every reward lands, whatever the tokenizers are."""

from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_scripted import gather
from rl_world import OracleScorer, oracle_grader, tiny_policy, world

from data.arithmetic import CORRUPTIONS, corrupt, make_problems
from data.schema import Problem, Sampling, Verdict
from data.steps import decode
from data.world_tokenizer import byte_bpe_tokenizer, character_tokenizer, word_tokenizer
from prm.model import new_prm
from prm.scorer import LocalScorer
from reasoning_rl.config import RewardConfig
from reasoning_rl.experience import collect, score_rollout, task_rewards
from reasoning_rl.moments import RunningMoments
from reasoning_rl.rollout.hf import HFGenerator

TOKENIZERS = {
    "words": word_tokenizer(),
    "characters": character_tokenizer(),
    "bytes": byte_bpe_tokenizer([p.text + "\n" + p.solution for p in make_problems(50, 0)], 400),
}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), kind=st.sampled_from(CORRUPTIONS), name=st.sampled_from(sorted(TOKENIZERS))
)
def test_every_step_score_lands_on_the_policy_token_that_ends_the_step(seed, kind, name) -> None:
    tokenizer = TOKENIZERS[name]
    problem = make_problems(1, seed, split="train")[0]
    response = corrupt(problem, Random(seed), kind)
    rollout = gather(tokenizer, [problem], [response])
    assert rollout.steps[0] == [line.strip() for line in response.split("\n")]
    begin = int(rollout.action_mask[0].nonzero()[0])
    for step, end in zip(rollout.steps[0], rollout.step_ends[0].tolist(), strict=True):
        ids = rollout.input_ids[0, begin : end + 1].tolist()
        assert decode(tokenizer, ids).rstrip("\n").endswith(step)
        assert not decode(tokenizer, ids[:-1]).rstrip("\n").endswith(step)
    scores = score_rollout(OracleScorer([problem]), oracle_grader, rollout)
    rewards, totals = task_rewards(
        rollout,
        scores,
        RewardConfig(form="sum", outcome_weight=0, normalise="off", clip=None),
        RunningMoments(),
    )
    expected = torch.zeros_like(rewards)
    for column, score in zip(rollout.step_ends[0], scores.step_scores[0], strict=True):
        expected[0, column] += score
    torch.testing.assert_close(rewards, expected, rtol=0, atol=0)
    assert totals.item() == scores.step_scores.sum().item()


def test_layout_of_a_ragged_batch_by_hand() -> None:
    tokenizer = character_tokenizer()
    problems = [Problem(id="a", text="Ann", answer="1"), Problem(id="b", text="Bob has", answer="2")]
    rollout = gather(tokenizer, problems, ["a\nas", ""])
    assert rollout.lengths.tolist() == [4 + 5, 8 + 1]  # prompt with its newline + response with <eos>
    assert rollout.action_mask.int().tolist() == [[0] * 4 + [1] * 5, [0] * 8 + [1]]
    assert rollout.step_ends.tolist()[0] == [4, 7]
    assert rollout.step_mask.tolist() == [[True, True], [False, False]]
    assert rollout.steps == [["a", "as"], []]
    expected = [0] * 4 + [-1.0, -1.1, -1.2, -1.3, -1.4]
    torch.testing.assert_close(rollout.behaviour_logprobs[0], torch.tensor(expected), rtol=1e-6, atol=0)


def test_named_cases_have_defined_rewards() -> None:
    tokenizer, problems = world(1)
    problem = problems[0]
    lines = problem.solution.split("\n")
    responses = [problem.solution, "", "\n\n", lines[0], "\n".join([lines[0]] * 2), problem.solution]
    rollout = gather(tokenizer, problems * 6, responses, cut=[5])
    assert [len(s) for s in rollout.steps] == [len(lines), 0, 0, 1, 2, len(lines)]
    scores = score_rollout(OracleScorer(problems), oracle_grader, rollout)
    assert scores.outcomes.tolist() == [1, 0, 0, 0, 0, 0]
    for form, whole, one, repeated in (
        ("sum", len(lines), 1, 1),
        ("delta", 1, 0, 1),
        ("clip", 0, 0, -0.7),
        ("none", 0, 0, 0),
    ):
        config = RewardConfig(form=form, normalise="off", clip=None)
        rewards, totals = task_rewards(rollout, scores, config, RunningMoments())
        torch.testing.assert_close(
            totals, torch.tensor([whole + 1.0, 0, 0, one, repeated, 0]), rtol=1e-6, atol=1e-6
        )
        torch.testing.assert_close(rewards.sum(1), totals, rtol=1e-6, atol=1e-6)
        assert bool((rewards[5] <= 0).all()), "a truncated answer earns nothing positive"


def test_an_unjudged_answer_is_paid_like_the_average_one() -> None:
    tokenizer, problems = world(3)
    rollout = gather(tokenizer, problems, [p.solution for p in problems])
    verdicts = iter(["correct", "wrong", "unjudged"])
    scores = score_rollout(None, lambda problem, response: Verdict(next(verdicts)), rollout)
    assert scores.judged.tolist() == [True, True, False]
    config = RewardConfig(form="none", normalise="off", clip=None)
    rewards, totals = task_rewards(rollout, scores, config, RunningMoments())
    assert totals.tolist() == [1.0, 0.0, 0.5]
    assert rewards.sum(1).tolist() == [1.0, 0.0, 0.5]


def test_normalisation_scales_by_the_responses_spread_and_shifts_only_the_last_token() -> None:
    tokenizer, problems = world(8)
    rng = Random(0)
    responses = [p.solution if i % 2 else corrupt(p, rng, "slip") for i, p in enumerate(problems)]
    rollout = gather(tokenizer, problems, responses)
    scores = score_rollout(OracleScorer(problems), oracle_grader, rollout)
    plain, totals = task_rewards(rollout, scores, RewardConfig(normalise="off", clip=None), RunningMoments())
    moments = RunningMoments()
    scaled, _ = task_rewards(rollout, scores, RewardConfig(normalise="standardise", clip=None), moments)
    mean, std = totals.double().mean(), totals.double().std()
    torch.testing.assert_close(scaled.sum(1).double(), (totals.double() - mean) / std, rtol=1e-5, atol=1e-5)
    last = rollout.lengths - 1
    rows = torch.arange(len(last))
    difference = scaled - plain / float(std)
    difference[rows, last] += float(mean / std)
    assert difference.abs().max() < 1e-5
    clipped, _ = task_rewards(rollout, scores, RewardConfig(clip=0.3), RunningMoments())
    assert clipped.abs().max() <= 0.3


def test_steps_that_the_scorer_could_not_read_earn_nothing_and_are_counted() -> None:
    tokenizer, problems = world(2)
    rollout = gather(tokenizer, problems, [p.solution for p in problems])

    class Short(OracleScorer):
        def score(self, problems, solutions):
            return [[row[0]] + [None] * (len(row) - 1) for row in super().score(problems, solutions)]

    scores = score_rollout(Short(problems), oracle_grader, rollout)
    assert scores.scored.sum() == 2 and rollout.step_mask.sum() > 4
    rewards, _ = task_rewards(
        rollout, scores, RewardConfig(form="sum", outcome_weight=0, normalise="off"), RunningMoments()
    )
    assert rewards.sum() == 2


def test_policy_and_reward_model_need_not_share_a_tokenizer() -> None:
    problems = make_problems(16, 1, split="train")
    characters, bytes_ = TOKENIZERS["characters"], TOKENIZERS["bytes"]
    generator = HFGenerator(tiny_policy(characters), characters)
    scorer = LocalScorer(new_prm(tiny_policy(bytes_).config), bytes_)
    with torch.no_grad():
        scorer.model.score.weight.normal_(std=1.0)
    rollout = collect(
        generator,
        characters,
        problems,
        Sampling(max_new_tokens=40, n=2),
        render=lambda text: f"{text}\n",
        splitter="newline",
    )
    assert len(rollout.problems) == 32 and rollout.problems[0] is rollout.problems[1]
    scores = score_rollout(scorer, oracle_grader, rollout)
    assert torch.equal(scores.scored, rollout.step_mask)
    alone = [scorer.score([p.text], [s])[0] for p, s in zip(rollout.problems, rollout.steps, strict=True)]
    for row, expected in enumerate(alone):
        actual = scores.step_scores[row, : len(expected)]
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-5)
