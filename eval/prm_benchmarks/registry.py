"""The table of step-score benchmarks: a new one is its formats, its threshold and a function to measure."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from data.errors import UserError, did_you_mean
from eval.prm_benchmarks.items import Item
from eval.prm_benchmarks.mistakes import measure_bigbench_mistake, measure_mr_gsm8k
from eval.prm_benchmarks.prm800k import measure_prm800k
from eval.prm_benchmarks.prmbench import measure_prmbench
from eval.prm_benchmarks.processbench import CHOSEN_ON, measure_processbench
from eval.prm_benchmarks.reasoneval import measure_reasoneval
from eval.prm_benchmarks.result import BenchmarkResult


class PRMBenchmark(NamedTuple):
    """A step-score benchmark: its files and its numbers."""

    formats: tuple[str, ...]
    """Names of `data.step_readers.FORMATS` its files may have."""
    measure: Callable[[Sequence[Item], Any], BenchmarkResult]
    """Takes what `check_threshold` lets through: a number, of ProcessBench a word as well."""
    description: str


PRM_BENCHMARKS: dict[str, PRMBenchmark] = {
    "processbench": PRMBenchmark(
        ("processbench",), measure_processbench, "first wrong step, F1 over four subsets (arXiv:2412.06559)"
    ),
    "prmbench": PRMBenchmark(
        ("prmbench",), measure_prmbench, "planted errors of nine kinds, PRMScore (arXiv:2501.03124)"
    ),
    "prm800k": PRMBenchmark(
        ("prm800k", "prm800k_flat"), measure_prm800k, "human step ratings, step AUC (arXiv:2305.20050)"
    ),
    "bigbench_mistake": PRMBenchmark(
        ("bigbench_mistake",), measure_bigbench_mistake, "mistake location, five tasks (arXiv:2311.08516)"
    ),
    "mr_gsm8k": PRMBenchmark(
        ("mr_gsm8k",), measure_mr_gsm8k, "first wrong step of GSM8K solutions (arXiv:2312.17080)"
    ),
    "reasoneval": PRMBenchmark(
        ("reasoneval_invalid", "reasoneval_redundant", "reasoneval_perturbation"),
        measure_reasoneval,
        "validity and redundancy, AUC (arXiv:2404.05692)",
    ),
}


def get_prm_benchmark(name: str) -> PRMBenchmark:
    """Return a benchmark by name. Raises UserError naming the nearest ones."""
    if name not in PRM_BENCHMARKS:
        raise UserError(f"benchmark '{name}' is unknown{did_you_mean(name, PRM_BENCHMARKS)}")
    return PRM_BENCHMARKS[name]


def measure(name: str, items: Sequence[Item], threshold: float | str = 0.5) -> BenchmarkResult:
    """Return the numbers of scored items. A step is called wrong when its score is below the threshold.

    Only ProcessBench takes the words "gsm8k" and "best". Raises UserError as `check_threshold` does.
    """
    check_threshold(name, items, threshold)
    return get_prm_benchmark(name).measure(items, threshold)


def check_threshold(name: str, items: Sequence[Item], threshold: float | str) -> None:
    """Raise UserError for a threshold that the benchmark or its items do not allow: before a model scores."""
    if isinstance(threshold, str) and name != "processbench":
        raise UserError(f"--threshold {threshold} is of processbench only; give {name} a number")
    if threshold == "gsm8k" and not any(item.subset == CHOSEN_ON for item in items):
        raise UserError(
            "--threshold gsm8k chooses on ProcessBench's gsm8k subset, which is not in the data; "
            "add it or give a number"
        )
