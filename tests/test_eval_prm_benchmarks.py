"""Metrics of the step-score benchmarks: published figures, slow versions from the definitions, hand cases."""

import math

import pytest
from prm_bench_cases import AVERAGES, PRMBENCH, PROCESSBENCH, item, random_scores
from shared_data import SHARED, needs_shared
from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score

from data.errors import UserError
from data.schema import StepSolution
from eval.metrics import harmonic_mean
from eval.prm_benchmarks import PRM_BENCHMARKS, load_items, measure
from eval.prm_benchmarks.counts import StepCounts, count_steps, matthews
from eval.prm_benchmarks.items import Item
from eval.prm_benchmarks.prmbench import CATEGORIES, SHORT
from eval.prm_benchmarks.processbench import PUBLISHED_COUNTS
from eval.prm_benchmarks.reasoneval import measure_reasoneval
from eval.prm_benchmarks.result import mean


def load(name, *parts, limit=None):
    return load_items(name, PRM_BENCHMARKS[name].formats, SHARED.joinpath("steps", *parts), limit=limit)


# --- ProcessBench --------------------------------------------------------------------------


@pytest.mark.parametrize("model", PROCESSBENCH)
def test_all_published_f1_come_out_of_the_published_accuracies(model) -> None:
    for error, correct, f1 in PROCESSBENCH[model]:
        assert harmonic_mean(error, correct) == pytest.approx(f1, abs=0.05)


@pytest.mark.parametrize("model", PROCESSBENCH)
def test_solutions_with_the_published_accuracies_measure_as_published(model) -> None:
    items = []
    for (name, (num_error, num_correct)), (error, correct, _) in zip(
        PUBLISHED_COUNTS.items(), PROCESSBENCH[model], strict=True
    ):
        hits, kept = round(error / 100 * num_error), round(correct / 100 * num_correct)
        # A miss names the step before, the next one or none: only the exact step counts.
        misses = [[0.1, 0.2, 0.9], [0.9, 0.9, 0.1], [0.9, 0.9, 0.9]]
        rows = [([0.9, 0.2, 0.1], 1)] * hits + [(misses[k % 3], 1) for k in range(num_error - hits)]
        rows += [([0.9, 0.5, 0.6], -1)] * kept + [([0.9, 0.4, 0.9], -1)] * (num_correct - kept)
        items += [item(scores, first, subset=name) for scores, first in rows]
    result = measure("processbench", items)
    # Accuracies are printed to 0.05 points, so F1 may differ by that.
    for name, (_, _, f1) in zip(PUBLISHED_COUNTS, PROCESSBENCH[model], strict=True):
        assert 100 * result.metrics["subsets"][name]["f1"] == pytest.approx(f1, abs=0.1)
    assert 100 * result.headline[1] == pytest.approx(AVERAGES[model], abs=0.1)
    assert result.notes == ()


def test_a_model_that_never_objects_has_f1_zero() -> None:
    items = [item([0.9, 0.9], 1, subset="math"), item([0.9], -1, subset="math")]
    numbers = measure("processbench", items).metrics["subsets"]["math"]
    assert (numbers["error_accuracy"], numbers["correct_accuracy"], numbers["f1"]) == (0, 1, 0)


def test_a_scalar_models_threshold_is_chosen_on_gsm8k_and_used_elsewhere() -> None:
    items = [
        *(item([3.0, -1.0], 1, subset="gsm8k"), item([2.0, 1.0], -1, subset="gsm8k")),
        *(item([0.5, -0.5], 0, subset="math"), item([0.5, 0.2], -1, subset="math")),
    ]
    result = measure("processbench", items, "gsm8k")
    subsets = result.metrics["subsets"]
    assert -1.0 < subsets["gsm8k"]["threshold"] <= 1.0 and subsets["gsm8k"]["f1"] == 1.0
    # At 0, the middle of that interval, math's error is put at step 1 instead of 0.
    assert subsets["math"]["threshold"] == subsets["gsm8k"]["threshold"] == 0.0
    assert (subsets["math"]["error_accuracy"], subsets["math"]["correct_accuracy"]) == (0.0, 1.0)
    assert any("gsm8k subset itself: its own F1 is optimistic" in note for note in result.notes)
    own = measure("processbench", items, "best")
    assert own.metrics["subsets"]["math"]["threshold"] != 0.0
    assert "an upper bound, not a result" in own.notes[-1]
    with pytest.raises(UserError, match="which is not in the data; add it or give a number"):
        measure("processbench", items[2:], "gsm8k")
    with pytest.raises(UserError, match="--threshold best is of processbench only"):
        measure("mr_gsm8k", items, "best")


@needs_shared
def test_processbench_halves_are_counted_against_the_published_sizes() -> None:
    items = load("processbench", "processbench")
    result = measure("processbench", random_scores(items, 0))
    counts = {k: (v["num_error"], v["num_correct"]) for k, v in result.metrics["subsets"].items()}
    assert counts == {
        "gsm8k": (107, 96),
        "math": (292, 194),
        "olympiadbench": (289, 172),
        "omnimath": (358, 122),
    }
    assert (
        "gsm8k 203 of 400, math 486 of 1000, olympiadbench 461 of 1000, omnimath 480 of 1000"
        in result.notes[0]
    )


# --- PRMBench ------------------------------------------------------------------------------


def test_prm_score_of_published_outputs() -> None:
    # R-PRM's 6,211 published outputs, counted from its files: PRMScore 64.9.
    counts = StepCounts(tp=55877, fp=5224, tn=7925, fn=14345)
    assert 100 * counts.macro_f1 == pytest.approx(64.9, abs=0.05)


@pytest.mark.parametrize("line", PRMBENCH.strip().splitlines())
def test_category_columns_are_the_means_of_their_classes(line) -> None:
    blocks = [list(map(float, block.split())) for block in line.split("|")[1:]]
    for members, (*classes, category) in zip(CATEGORIES.values(), blocks, strict=True):
        assert len(classes) == len(members)
        assert mean(classes) == pytest.approx(category, abs=0.101)  # both are rounded


def prm_item(scores, labels, kind, idx="i", first=None, neutral=None):
    meta = {"classification": kind, "idx": idx}
    return item(scores, first, labels, kind, neutral, id=f"{kind}_{idx}", meta=meta)


def test_prmbench_by_hand() -> None:
    items = [
        prm_item([0.9, 0.2, 0.9, 0.4], [1, 0, 1, 1], "deception", first=1),  # tp 2, tn 1, fn 1
        prm_item([0.9, 0.8], [1, 0], "confidence", first=1),  # tp 1, fp 1
        prm_item([0.9, 0.2], [1, 1], "multi_solutions", first=-1),  # tp 1, fn 1
        prm_item([0.9, 0.9, 0.2, 0.2], [1, 1, 1, 1], "correct", first=-1),  # the control: half called right
    ]
    result = measure("prmbench", items)
    deception, overall = result.metrics["classes"]["deception"], result.metrics["overall"]
    assert deception["f1"] == pytest.approx(2 * 2 / (2 * 2 + 0 + 1))
    assert deception["negative_f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 0))
    assert deception["first_error_accuracy"] == 1.0
    assert deception["similarity"] == pytest.approx(abs(2 / 4 - 2 / 4))
    assert result.metrics["classes"]["confidence"]["similarity"] == pytest.approx(abs(2 / 2 - 2 / 4))
    assert result.metrics["classes"]["multi_solutions"]["prm_score"] == pytest.approx(2 / 3)  # F1 alone
    assert (overall["tp"], overall["fp"], overall["tn"], overall["fn"]) == (4, 1, 1, 2)
    assert result.headline[1] == pytest.approx(0.5 * 8 / 11 + 0.5 * 2 / 5)  # the control is not in it
    assert "correct" not in result.metrics["classes"]


def test_redundancy_classes_go_by_the_neutral_class_of_a_three_class_model() -> None:
    rows = ([0.9, 0.9], [1, 0]), (0.1, 0.2)
    circular = prm_item(*rows[0], "circular", first=1, neutral=rows[1])
    deception = prm_item(*rows[0], "deception", first=1, neutral=rows[1])
    classes = measure("prmbench", [circular, deception]).metrics["classes"]
    assert classes["circular"]["prm_score"] == 1.0  # 0.2 > 0.15: redundant
    assert classes["deception"]["negative_f1"] == 0.0  # valid by its score


@needs_shared
def test_prmbench_equals_f1_scores_from_another_library() -> None:
    items = random_scores(load("prmbench", "prmbench", limit=60), seed=1)
    result = measure("prmbench", items)
    assert set(result.metrics["classes"]) == set(SHORT)
    for name, numbers in [*result.metrics["classes"].items(), ("all", result.metrics["overall"])]:
        group = [i for i in items if i.subset == name or (name == "all" and i.subset != "correct")]
        truth = [label for one in group for label in one.solution.labels]
        said = [score >= 0.5 for one in group for score in one.scores]
        expected = f1_score(truth, said, average="macro", zero_division=0)
        if name == "multi_solutions":
            expected = f1_score(truth, said)
        assert numbers["prm_score"] == pytest.approx(expected, rel=1e-12)
    # Similarity from its definition.
    rates = {i.solution.id: mean([float(s >= 0.5) for s in i.scores]) for i in items}
    gaps = [
        abs(rates[i.solution.id] - rates[f"correct_{i.solution.meta['idx']}"])
        for i in items
        if i.subset == "deception" and rates.get(f"correct_{i.solution.meta['idx']}")
    ]
    assert result.metrics["classes"]["deception"]["similarity"] == pytest.approx(mean(gaps))


# --- ReasonEval, MR-GSM8K, BIG-Bench-Mistake, PRM800K ----------------------------------------


@needs_shared
def test_reasoneval_equals_scores_from_another_library() -> None:
    items = random_scores(load("reasoneval", "reasoneval"), seed=2)
    result = measure("reasoneval", items)
    group = [i for i in items if i.subset == "reasoneval_invalid"]
    right = [i.solution.first_error == -1 for i in group]
    least = [min(i.scores) for i in group]
    numbers = result.metrics["reasoneval_invalid"]
    assert numbers["solution_auc"] == pytest.approx(roc_auc_score(right, least))
    assert result.headline[1] == numbers["solution_auc"]
    assert numbers["solution_macro_f1"] == pytest.approx(
        f1_score(right, [s >= 0.5 for s in least], average="macro")
    )
    # Steps up to the first error only, counted from the raw first errors.
    steps = [
        (k != i.solution.first_error, score)
        for i in group
        for k, score in enumerate(i.scores)
        if i.solution.first_error == -1 or k <= i.solution.first_error
    ]
    assert numbers["step_auc"] == pytest.approx(roc_auc_score(*zip(*steps, strict=True)))
    truth, said = zip(*[(t, s >= 0.5) for t, s in steps], strict=True)
    assert numbers["step_macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"))
    assert "invalid 64 of 159, redundant 135 of 300" in result.notes[0]
    assert set(result.metrics["reasoneval_perturbation"]) >= {"random number", "swap steps"}


def test_redundancy_is_the_neutral_probability_where_there_is_one() -> None:
    def one(neutral, ratings, scores):
        meta = {"ratings": ratings, "lines_per_step": [1] * len(ratings)}
        return item(scores, -1, subset="reasoneval_redundant", neutral=neutral, meta=meta)

    items = [one((0.1, 0.3), [1, 0], (0.9, 0.9)), one((0.05, 0.12), [1, 1], (0.4, 0.9))]
    numbers = measure("reasoneval", items).metrics["reasoneval_redundant"]
    # The first solution's greatest P(neutral), 0.3, exceeds the second's: both levels are separated at 0.15.
    assert numbers == {"solution_auc": 1, "solution_macro_f1": 1, "step_auc": 1, "step_macro_f1": 1}
    plain = [item(i.scores, -1, subset=i.subset, meta=i.solution.meta) for i in items]
    numbers = measure("reasoneval", plain).metrics["reasoneval_redundant"]
    assert numbers["solution_auc"] == 0.0  # by its plain scores the redundant one looks better


def test_mr_gsm8k_by_hand() -> None:
    kinds = [{"meta": {"question_type": kind}} for kind in ("original", "original", "POT", "POT", "POT")]
    rows = [
        ([0.9, 0.1], 1),  # wrong, named exactly
        ([0.2, 0.1], 1),  # wrong, named too early
        ([0.9, 0.9], 0),  # wrong, missed
        ([0.9, 0.9], -1),
        ([0.9, 0.2], -1),  # right, suspected
    ]
    items = [item(scores, first, **kind) for (scores, first), kind in zip(rows, kinds, strict=True)]
    numbers = measure("mr_gsm8k", items).metrics["all"]
    correlation = matthews_corrcoef([0, 0, 0, 1, 1], [0, 0, 1, 1, 0])
    assert numbers["matthews"] == pytest.approx(correlation)
    assert numbers["first_step_accuracy"] == pytest.approx(1 / 3)
    assert numbers["mr_score_without_reasons"] == pytest.approx(0.2 * max(0, correlation) + 0.3 / 3)
    by_kind = measure("mr_gsm8k", items).metrics["question_types"]
    assert by_kind["original"]["first_step_accuracy"] == 0.5 and by_kind["POT"]["num_right"] == 2


def test_matthews_is_that_of_another_library_and_zero_where_a_margin_is_empty() -> None:
    truth, said = [1, 1, 0, 0, 0, 1, 1], [1, 0, 0, 1, 0, 1, 1]
    counts = count_steps(truth, [0.9 if s else 0.1 for s in said], 0.5)
    assert matthews(counts) == pytest.approx(matthews_corrcoef(truth, said))
    assert matthews(StepCounts(tp=3)) == 0.0


def test_mistake_location_by_hand() -> None:
    items = [
        item([0.9, 0.1], 1, subset="a", answer_correct=False),
        item([0.1, 0.1], 1, subset="a", answer_correct=True),
        item([0.9, 0.9], -1, subset="a", answer_correct=True),
        item([0.9, 0.9], -1, subset="b", answer_correct=True),
    ]
    result = measure("bigbench_mistake", items)
    task = result.metrics["tasks"]["a"]
    assert [task[k] for k in ("accuracy", "accuracy_mistake", "accuracy_no_mistake")] == [2 / 3, 0.5, 1.0]
    assert (task["accuracy_answer_right"], task["accuracy_answer_wrong"]) == (0.5, 1.0)
    assert math.isnan(result.metrics["tasks"]["b"]["accuracy_mistake"])
    assert result.headline[1] == pytest.approx((2 / 3 + 1) / 2)  # tasks count alike


def test_neutral_ratings_are_read_three_ways() -> None:
    items = [item([0.9, 0.6, 0.2], None, [1.0, 0.5, 0.0]), item([0.7, 0.8], None, [None, 0.0])]
    metrics = measure("prm800k", items).metrics
    assert {k: v["num_steps"] for k, v in metrics.items()} == {"positive": 4, "negative": 4, "left out": 3}
    assert metrics["positive"]["step_auc"] == roc_auc_score([1, 1, 0, 0], [0.9, 0.6, 0.2, 0.8])
    assert metrics["negative"]["step_auc"] == roc_auc_score([1, 0, 0, 0], [0.9, 0.6, 0.2, 0.8])
    assert metrics["left out"]["step_auc"] == roc_auc_score([1, 0, 0], [0.9, 0.2, 0.8])


@needs_shared
@pytest.mark.parametrize(
    ("name", "parts", "count"),
    [
        ("prm800k", ("prm800k_phase1_test.jsonl.gz",), 1820),
        ("bigbench_mistake", ("big_bench_mistake",), 1109),
        ("mr_gsm8k", ("mr_gsm8k_wrong.jsonl",), 291),
    ],
)
def test_real_files_measure(name, parts, count) -> None:
    items = load(name, *parts)
    assert len(items) == count
    result = measure(name, random_scores(items, 3))
    assert 0 <= result.headline[1] <= 1
    assert result.notes  # each says why it is not comparable


def test_reasoneval_perturbations_by_hand() -> None:
    """By error type: the share of first errors named exactly, and both classes' F1 over all steps."""

    def swapped(kind: str, labels: list[float], first: int, scores: list[float]) -> Item:
        solution = StepSolution("q", ("a", "b"), tuple(labels), first_error=first, meta={"error_type": kind})
        return Item("reasoneval_perturbation", solution, tuple(scores))

    items = [
        swapped("swap", [1.0, 0.0], 1, [0.9, 0.2]),  # named
        swapped("swap", [0.0, 0.0], 0, [0.7, 0.4]),  # one step late
        swapped("unit", [1.0, 1.0], -1, [0.8, 0.9]),  # none there, none named
    ]
    result = measure_reasoneval(items, 0.5)
    found = result.metrics["reasoneval_perturbation"]
    assert found["swap"]["num_solutions"] == 2 and found["swap"]["first_error_accuracy"] == 0.5
    # swap: of 3 wrong steps 2 are called wrong and nothing else: F1 0.8; 1 right, 2 called right: F1 2/3.
    assert found["swap"]["step_macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["unit"]["first_error_accuracy"] == 1.0
    assert [table.title for table in result.tables] == [
        "ReasonEval, perturbations (this table is not published), %"
    ]
    assert result.notes == (
        "not the published rows, so not comparable with published numbers: invalid 0 of 159, "
        "redundant 0 of 300, perturbation 3 of 1064",
    )
