"""benchmarks/gpu.py without a GPU: the smallest sizes on a CPU give every number, with counts by hand."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    for name in ("TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # the import sets what is unset
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    AcceleratorState._reset_state(True)  # accelerate keeps one precision a process
    import gpu

    yield gpu
    AcceleratorState._reset_state(True)


def test_the_smallest_sizes_on_a_cpu_give_every_number(gpu, tmp_path, monkeypatch) -> None:
    import gpu_parts
    import gpu_timing

    for module in (gpu_parts, gpu_timing):
        monkeypatch.setattr(module, "WARM_UP", 1)
        monkeypatch.setattr(module, "REPEATS", 1)
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--sizes", "tiny", "--seconds", "20", "--json", str(path)]) == 0
    result = json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN
    assert result["device"] == "cpu" and result["gemm_tflops"] > 0 and result["peak_tflops"] is None
    assert {"torch", "transformers", "accelerate"} <= set(result["versions"])
    assert [(row["size"], row["part"]) for row in result["rows"]] == [
        ("tiny", name) for name in gpu_parts.PARTS
    ]
    for row in result["rows"]:
        assert "failed" not in row
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in ("tokens_per_s", "seconds", "tflops"))
        assert 0 < row["mfu"] < 1.5 and row["mfu_peak"] is None and row["peak_gpu_mib"] is None
        assert row["repeats"] == 1 and row["warmed_up"]
    assert set(result["rows"][-1]["phases"]) >= {"generate", "score", "reference", "experience", "update"}

    course = result["course"]
    assert "failed" not in course and course["iterations"] == len(course["curve"]) == 3
    assert course["sft_loss"] > 0 and set(course["seconds"]) == {"sft", "evaluate", "prm", "ppo"}
    for when in ("before", "after"):
        for how in ("greedy", "sampled"):
            found = course["accuracy"][when][how]
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1 and found["num_problems"] == 16


def test_model_flops_are_those_that_torch_counts(gpu) -> None:
    from gpu_parts import SHAPES, make_policy

    shape, rows, length = SHAPES["tiny"], 3, 16
    policy = make_policy(shape, torch.device("cpu"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy(input_ids=torch.ones(rows, length, dtype=torch.long), use_cache=False)
    counted = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    linear = sum(flops for name, flops in counted.items() if name in ("aten.mm", "aten.addmm"))
    # Torch counts attention to all T x T pairs: a causal model needs T (T + 1) / 2 of them.
    pairs = shape.layers * rows * shape.heads * shape.head_width * length * (length + 1) / 2
    found = shape.forward_flops(rows=rows, length=length, logits=rows * length)
    assert found == linear + 4 * pairs


def test_a_part_that_runs_out_of_memory_or_breaks_says_so(gpu, capsys) -> None:
    def no_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken() -> None:
        raise RuntimeError("one\ntwo")

    rows = [{"size": "0.5b", "part": "sft"}, {"size": "0.5b", "part": "sft"}]
    gpu.guard(rows[0], no_memory)
    gpu.guard(rows[1], broken)
    assert [row["failed"] for row in rows] == ["out of memory", "RuntimeError: one"]
    assert "out of memory" in gpu.row_text(rows[0])


def test_the_data_sheet_of_a_known_device_is_found(gpu) -> None:
    from gpu_timing import data_sheet_tflops

    names = {
        "NVIDIA H200": 989.0,
        "NVIDIA H200 NVL": 835.0,
        "NVIDIA H100 80GB HBM3": 989.0,
        "NVIDIA H100 PCIe": 756.0,
        "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA L4": 121.0,
        "NVIDIA H200 MIG 1g.18gb": None,
        "NVIDIA GeForce GTX 1080": None,
    }
    assert {name: data_sheet_tflops(name) for name in names} == names


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "no GPU" in done.stderr and done.stderr.count("\n") == 1
