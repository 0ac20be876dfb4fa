"""Dynamic sampling: which groups stay, what fills a batch, and that nothing sampled goes uncounted."""

from collections import Counter

import pytest
import torch
from rl_cases import in_ranks
from rl_runs import learner_for, run, settings
from rl_world import taught_policy, world

from data.errors import UserError
from data.schema import Problem, Verdict
from reasoning_rl.dynamic import disagree, sample_informative
from reasoning_rl.types import Rollout

G = 2


def rollout_of(problems: list[Problem]) -> Rollout:
    """G answers a problem, as long as the problem's number: widths differ from draw to draw."""
    rows = [problem for problem in problems for _ in range(G)]
    lengths = torch.tensor([2 + int(problem.id) for problem in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    mask[:, 0] = False
    return Rollout(
        problems=rows,
        responses=[f"{problem.id}.{k % G}" for k, problem in enumerate(rows)],
        steps=[[problem.id] for problem in rows],
        input_ids=torch.tensor([int(problem.id) for problem in rows])[:, None] * mask,
        lengths=lengths,
        action_mask=mask,
        behaviour_logprobs=-1.0 * mask,
        complete=torch.ones(len(rows), dtype=torch.bool),
        step_ends=(lengths - 1)[:, None],
        step_mask=torch.ones(len(rows), 1, dtype=torch.bool),
    )


class Source:
    """Problems 0, 1, 2 ...; those in `useful` get a right and a wrong answer, the others two wrong ones."""

    def __init__(self, useful: set[int], step: int = 1, start: int = 0) -> None:
        self.useful, self.step, self.next = useful, step, start
        self.drawn: list[int] = []

    def draw(self, count: int) -> list[Problem]:
        numbers = [self.next + k * self.step for k in range(count)]
        self.next += count * self.step
        self.drawn += numbers
        return [Problem(id=str(n), text="", answer="") for n in numbers]

    def grade(self, rollout: Rollout):
        right = [k % G == 0 and int(p.id) in self.useful for k, p in enumerate(rollout.problems)]
        return torch.tensor(right).float(), torch.ones(len(right), dtype=torch.bool)


def sample(source: Source, num_problems: int, rounds: int, largest=int):
    return sample_informative(
        source.draw,
        rollout_of,
        source.grade,
        num_problems=num_problems,
        group_size=G,
        rounds=rounds,
        largest=largest,
    )


def ids(sampled) -> list[str]:
    return [problem.id for problem in sampled.rollout.problems]


def test_a_group_is_kept_where_its_judged_answers_disagree() -> None:
    outcomes = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0])
    judged = torch.tensor([True] * 6 + [True, False])
    assert disagree(outcomes, judged, 2).tolist() == [True, False, False, False]


def test_only_what_is_missing_is_drawn_again_until_the_batch_is_full() -> None:
    source = Source(useful={1, 4, 6})
    sampled = sample(source, 3, rounds=5)
    # 0 1 2 keep one; 3 4 keep one; 5 none; 6 one: full, and a fifth round is not drawn.
    assert source.drawn == [0, 1, 2, 3, 4, 5, 6]
    assert ids(sampled) == ["1", "1", "4", "4", "6", "6"]
    assert sampled.graded[0].tolist() == [1, 0, 1, 0, 1, 0]
    metrics = sampled.metrics
    assert (metrics["rollout/extra_rounds"], metrics["rollout/dropped_groups"]) == (3, 4)
    assert metrics["rollout/filled_groups"] == 0
    assert metrics["rollout/outcome_before_filter"] == pytest.approx(3 / 14)
    assert metrics["rollout/tokens"] == sum(G * (1 + n) for n in range(7)), "dropped answers cost as well"


def test_a_batch_that_cannot_be_filled_is_made_up_of_the_newest_agreeing_groups() -> None:
    source = Source(useful={1})
    sampled = sample(source, 3, rounds=1)
    assert source.drawn == [0, 1, 2, 3, 4]
    assert ids(sampled) == ["1", "1", "3", "3", "4", "4"]
    assert sampled.metrics["rollout/filled_groups"] == 2


def test_joined_rows_are_those_of_their_draws_padded_with_nothing() -> None:
    sampled = sample(Source(useful={1, 4, 6}), 3, rounds=5)
    alone = rollout_of([Problem(id="4", text="", answer="")])
    rows = sampled.rollout.select(torch.tensor([2, 3]))
    width = alone.input_ids.shape[1]
    for name in ("input_ids", "action_mask", "behaviour_logprobs"):
        joined = getattr(rows, name)
        assert torch.equal(joined[:, :width], getattr(alone, name))
        assert not joined[:, width:].any()
    assert rows.responses == alone.responses and torch.equal(rows.step_ends, alone.step_ends)


def test_ranks_draw_alike_so_that_no_problem_comes_twice() -> None:
    sources = [Source({0, 2}, step=2, start=0), Source({7}, step=2, start=1)]

    def work(source: Source, _total, largest):
        return sample(source, 2, 3, lambda count: int(largest(torch.tensor([count]))[0]))

    one, two = in_ranks(work, [(source,) for source in sources])
    assert ids(one) == ["0", "0", "2", "2"] and ids(two)[:2] == ["7", "7"]
    assert len(sources[0].drawn) == len(sources[1].drawn)
    assert max(Counter(sources[0].drawn + sources[1].drawn).values()) == 1


DYNAMIC = {
    "algorithm": "grpo",
    "preset": "grpo",
    "iterations": 4,
    "reward": {"form": "none"},
    "rollout": {
        "problems_per_iteration": 4,
        "samples_per_problem": 2,
        "max_new_tokens": 40,
        "dynamic_rounds": 6,
    },
    "update": {"minibatch_size": 8, "learning_rate": 1e-4},
}


def grader(problem, response) -> Verdict:
    return Verdict("correct" if response.count("\n") <= 2 else "wrong")


def test_a_resumed_run_draws_what_the_uninterrupted_one_does(tmp_path) -> None:
    """Each iteration takes another number of problems: the sampler's place is in the checkpoint."""
    tokenizer, _ = taught_policy()
    _, problems = world(200)
    for name in ("whole", "stopped"):
        config = settings(tmp_path / name, **DYNAMIC)
        learner = learner_for(config, tokenizer, policy=taught_policy()[1])
        if name == "stopped":
            first = config.model_copy(update={"iterations": 2})
            run(first, learner, tokenizer, problems, grader=grader)
            learner = learner_for(config, tokenizer, policy=taught_policy()[1])
        rows = run(config, learner, tokenizer, problems, grader=grader, resume=name == "stopped")
    whole, stopped = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    assert len({row["rollout/dropped_groups"] for row in rows}) > 1
    assert all(row["group/agree"] < 1 for row in rows)


def test_dynamic_sampling_needs_answers_to_compare(tmp_path) -> None:
    with pytest.raises(UserError, match="set samples_per_problem above 1"):
        rollout = {"problems_per_iteration": 8, "samples_per_problem": 1, "dynamic_rounds": 1}
        settings(tmp_path, rollout=rollout)
