"""Benchmarks of step scores: ProcessBench, PRMBench, PRM800K, BIG-Bench-Mistake, MR-GSM8K, ReasonEval.

    items = load_items("processbench", PRM_BENCHMARKS["processbench"].formats, "processbench/")
    result = measure("processbench", attach_scores(items, read_scores("scores.jsonl")))

docs/prm_benchmarks.md defines every number and says where it comes from.
"""

from eval.prm_benchmarks.items import Item, attach_scores, load_items, read_scores
from eval.prm_benchmarks.registry import PRM_BENCHMARKS, measure

__all__ = [
    "PRM_BENCHMARKS",
    "Item",
    "attach_scores",
    "load_items",
    "measure",
    "read_scores",
]
