"""The calculator of GPU memory, against cases worked by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import UserError
from prm.next_token import CHUNK
from reasoning_rl.commands_plan import plan_text
from reasoning_rl.plan import (
    LOGIT_CHUNK,
    MODELS,
    Model,
    Run,
    activation_bytes,
    choices,
    choose,
    config_name,
    logit_bytes,
    plan,
    traffic_bytes,
    trained_bytes,
)
from reasoning_rl.plan_config import PlanConfig

CONFIGS = Path(__file__).parent.parent / "configs" / "accelerate"


@pytest.mark.parametrize(
    ("engine", "gigabytes"),
    # The example of figure 1 in the ZeRO paper: 7.5e9 parameters on 64 GPUs.
    [("ddp", 120.0), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.875)],
)
def test_the_papers_own_example(engine, gigabytes) -> None:
    on_gpu, in_host = trained_bytes(7.5e9, Run(num_gpus=64, engine=engine))
    assert on_gpu / 1e9 == pytest.approx(gigabytes, abs=0.05)
    assert in_host == 0


def test_offload_moves_and_loses_nothing() -> None:
    # 1e9 parameters on 4 GPUs, stage 3: 2/4 weights, 2/4 gradients, 12/4 moments.
    run = Run(num_gpus=4, engine="zero3")
    assert trained_bytes(1e9, run) == (4e9, 0)
    assert trained_bytes(1e9, replace(run, offload="optimizer")) == (1e9, 3e9)
    assert trained_bytes(1e9, replace(run, offload="all")) == (0.5e9, 3.5e9)
    # Stage 2 keeps all weights: 2 + 2/4 on the GPU.
    assert trained_bytes(1e9, Run(4, "zero2", offload="optimizer")) == (2.5e9, 3e9)


def test_adapters_cost_gradients_and_moments_of_their_own_only() -> None:
    on_gpu, _ = trained_bytes(1e9, Run(num_gpus=1, engine="ddp"), trained=1e7)
    assert on_gpu == 2e9 + 14e7
    tiny = Model(1e9, 1, 10, 1, 10, 100)
    run = Run(num_gpus=1, engine="ddp", lora_rank=1, has_prm=False)
    assert plan(tiny, run).reference == 0  # the actor with its adapters off
    assert plan(tiny, run).actor == 2e9 + 14 * 140


def test_the_plan_counts_as_many_logits_as_exist() -> None:
    assert LOGIT_CHUNK == CHUNK


def test_activations_logits_and_cache_by_hand() -> None:
    model = Model(1e9, num_layers=2, width=10, num_kv_heads=1, head_width=4, vocabulary=100)
    # 34 bytes x 5 tokens x 10 wide = 1700 a layer; checkpointed: 2 inputs of 2 x 5 x 10, and one layer anew.
    assert activation_bytes(model, 5, checkpointing=False) == 3400
    assert activation_bytes(model, 5, checkpointing=True) == 200 + 1700
    assert logit_bytes(model, 5) == 6000
    assert model.kv_bytes_a_token == 2 * 2 * 1 * 4 * 2
    run = Run(4, "zero2", vllm="colocated", vllm_tensor_parallel=2, kv_tokens=10)
    assert plan(model, run).engine == (2e9 + 320) / 2


def test_traffic_is_two_passes_and_three_where_weights_are_cut() -> None:
    for engine in ("ddp", "zero1", "zero2"):
        assert traffic_bytes(1e9, Run(4, engine)) == 0.75 * 4e9
    assert traffic_bytes(1e9, Run(4, "zero3")) == 0.75 * 6e9
    assert traffic_bytes(1e9, Run(1, "ddp")) == 0


def test_the_total_is_the_sum_and_sampling_from_a_cut_policy_takes_a_copy() -> None:
    for way in choices(Run(8, "ddp", vllm="none")):
        found = plan(MODELS["7b"], way)
        assert found.copy == (4 * 7.62e9 if way.engine == "zero3" else 0)
        parts = vars(found)
        on_gpu = sum(v for k, v in parts.items() if k not in ("host", "traffic"))
        assert found.total == pytest.approx(on_gpu)


@pytest.mark.parametrize("size", MODELS)
def test_the_fastest_way_that_fits_is_taken_and_has_a_config(size) -> None:
    for gpus in (1, 8, 64):
        run = Run(gpus, "ddp")
        way = choose(MODELS[size], run, 80e9)
        if way is None:
            assert all(plan(MODELS[size], other).total > 0.9 * 80e9 for other in choices(run))
            continue
        assert plan(MODELS[size], way).total <= 0.9 * 80e9
        faster = choices(run)[: choices(run).index(way)]
        assert all(plan(MODELS[size], other).total > 0.9 * 80e9 for other in faster)
        assert (CONFIGS / config_name(way)).is_file()


def test_the_table_marks_the_advice_and_unknown_sizes_are_refused() -> None:
    text = plan_text(PlanConfig(model_size="7b", gpus=8))
    assert "zero3 <" in text and "take configs/accelerate/zero3.yaml with --num_processes 8" in text
    assert "none fits" in plan_text(PlanConfig(model_size="70b", gpus=1))
    with pytest.raises(UserError, match="model size '7' is unknown"):
        plan_text(PlanConfig(model_size="7"))
    with pytest.raises(UserError, match="model size 'off' is unknown"):
        plan_text(PlanConfig(model_size="off"))
