"""Run a benchmark: on a model, or on responses that you have.

python examples/run_benchmark.py gsm8k Qwen/Qwen2.5-Math-1.5B-Instruct      # without names the quickstart's
"""

import sys

from reasoning_rl.api import run_benchmark

PROBLEMS = [{"question": "2 + 3?", "answer": 5}, {"question": "4 + 4?", "answer": 8}]
RESPONSES = [
    {"problem": "2 + 3?", "response": r"It is \boxed{5}."},
    {"problem": "4 + 4?", "response": r"It is \boxed{9}."},
]


def main(
    benchmark="arithmetic",
    model="outputs/quickstart/sft/model",
    output_dir="outputs/examples/eval",
    **settings,
):
    result = run_benchmark(benchmark, model=model, output_dir=output_dir, **settings)
    own = run_benchmark(PROBLEMS, samples=RESPONSES, output_dir=output_dir)
    for name, value in (*result.rows(), *own.rows()[:1]):
        print(f"{name:<30} {value}")
    return result, own


if __name__ == "__main__":
    main(*sys.argv[1:])
