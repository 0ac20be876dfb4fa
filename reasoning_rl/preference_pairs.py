"""From scored responses to what is learned from them: pairs to prefer between, or solutions to imitate.

pairs = rank_pairs(groups, by="outcome", most=1)
pairs = step_pairs(groups, splitter="newline", threshold=0.5)
chains = right_solutions(groups, most=4)
"""

from collections.abc import Sequence

from data.aggregation import aggregate
from data.schema import Preference, StepSolution
from data.steps import Splitter, joiner_of
from prm.pairs import iterate_pairs
from reasoning_rl.sampled import Group, ScoreBy, ScoredResponse


def rank_pairs(
    groups: Sequence[Group],
    *,
    by: ScoreBy = "outcome",
    most: int = 1,
    min_gap: float = 0.0,
    require_right: bool = False,
) -> list[Preference]:
    """Return at most `most` pairs a problem: the best response against the worst, the second best against the
    second worst, and so on while their scores differ by more than `min_gap`.

    by outcome that is right against wrong, in the order of sampling. Equal texts count once. A truncated
    response is never chosen; with `require_right` a wrong or unjudged one neither, as in arXiv:2404.10719 and
    arXiv:2404.19733.
    """
    pairs = []
    for group in groups:
        texts: dict[str, tuple[float, ScoredResponse]] = {}
        for response in group.responses:
            score = response.score(by)
            if score is not None:
                texts.setdefault(response.text, (score, response))
        ranked = sorted(texts.values(), key=lambda item: -item[0])
        best = [item for item in ranked if item[1].complete and (not require_right or item[1].outcome == 1)]
        worst = sorted(texts.values(), key=lambda item: item[0])
        for k, ((high, chosen), (low, rejected)) in enumerate(zip(best[:most], worst, strict=False)):
            if high - low <= min_gap:
                break
            pairs.append(
                Preference(
                    group.prompt,
                    chosen.text,
                    rejected.text,
                    id=f"{group.id}/{k}",
                    rejected_ends=rejected.complete,
                )
            )
    return pairs


def step_pairs(
    groups: Sequence[Group], *, splitter: Splitter = "newline", threshold: float = 0.5, most: int = 8
) -> list[Preference]:
    """Return pairs of single steps after a shared right prefix: a right one and the first wrong one.

    A step is right when its score, that of all steps so far, reaches `threshold`. At most `most` pairs a
    prefix. In a pair the prefix is context; a step that ended its response brings the end token, another one
    the line break behind it. Source: Step-DPO, arXiv:2406.18629; differs: the right step is another sample's,
    where the paper samples one anew after the prefix.
    """
    joiner = joiner_of(splitter)
    pairs = []
    for group in groups:
        solutions, whole = [], set()
        for response in group.responses:
            labels = tuple(None if s is None else float(s >= threshold) for s in response.step_scores)
            solutions.append(StepSolution(group.problem, response.steps, labels, label_kind="judge"))
            if response.complete:
                whole.add(response.steps)
        for k, pair in enumerate(iterate_pairs(solutions, "steps", most_per_prefix=most)):
            ends = [(*pair.prefix, *side) in whole for side in (pair.chosen, pair.rejected)]
            chosen, rejected = (
                joiner.join(side) + ("" if end else joiner)
                for side, end in zip((pair.chosen, pair.rejected), ends, strict=True)
            )
            pairs.append(
                Preference(
                    group.prompt,
                    chosen,
                    rejected,
                    id=f"{group.id}/{k}",
                    prefix="".join(step + joiner for step in pair.prefix),
                    chosen_ends=ends[0],
                    rejected_ends=ends[1],
                )
            )
    return pairs


def right_solutions(
    groups: Sequence[Group], *, most: int = 4, min_step_score: float | None = None
) -> list[tuple[str, str]]:
    """Return (prompt, response) of verified right answers, at most `most` distinct chains a problem.

    Two chains are the same when their steps are, white space aside. min_step_score: all steps must reach it,
    which leaves out right answers by wrong steps; and those with the highest come first. Source: rejection
    sampling fine-tuning, arXiv:2308.01825.
    """
    chosen = []
    for group in groups:
        chains: dict[tuple[str, ...], tuple[float, str]] = {}
        for response in group.responses:
            lowest = aggregate(response.step_scores, "min")
            if response.outcome != 1.0 or not response.complete:
                continue
            if min_step_score is not None and (lowest is None or lowest < min_step_score):
                continue
            chain = tuple(" ".join(step.split()) for step in response.steps)
            chains.setdefault(chain, (lowest or 0.0, response.text))
        ordered = list(chains.values())
        if min_step_score is not None:
            ordered.sort(key=lambda item: -item[0])
        chosen += [(group.prompt, text) for _, text in ordered[:most]]
    return chosen
