"""benchmarks/hacking.py: every arm's settings are accepted, and the table says what the runs' records say."""

from pathlib import Path

import pytest

from reasoning_rl.config import PPOConfig
from reasoning_rl.presets import merge
from reasoning_rl.quickstart import PPO
from reasoning_rl.telemetry import RunLog


@pytest.fixture
def hacking(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import hacking

    return hacking


def test_every_arm_is_a_run_and_only_the_outcome_arms_pay_for_answers(hacking) -> None:
    for name, arm in hacking.ARMS.items():
        config = PPOConfig.from_preset(merge(PPO, arm))
        assert (config.reward.outcome_weight == 0) == (name in hacking.PRM_ONLY or name == "sum, KL raised")


def record(folder: Path, courses: dict[int, dict[str, float]]) -> Path:
    log = RunLog(folder)
    log(0, {"valid/greedy": 0.25})
    for iteration, metrics in courses.items():
        log(iteration, metrics)
    (folder / "cpu_seconds").write_text("60.0")
    return folder


def test_the_table_takes_the_mean_of_the_last_iterations_and_names_the_first_alarm(hacking, tmp_path) -> None:
    def course(steps: float, alarm: int | None) -> dict[int, dict[str, float]]:
        return {
            i: {
                **dict.fromkeys(hacking.NUMBERS.values(), 0.5),
                "hack/num_steps": steps + i,
                "alarm/steps": float(alarm is not None and i >= alarm),
                "alarm/gap": 0.0,
                **({"valid/greedy": 0.4} if i == 5 else {}),
            }
            for i in range(1, 6)
        }

    runs = {
        ("sum", 0): record(tmp_path / "sum0", course(4, 3)),
        ("sum", 1): record(tmp_path / "sum1", course(6, None)),
    }
    summary = hacking.summarise(runs, ["sum"], [0, 1], 5)
    found = summary["arms"]["sum"]
    assert found["num_steps"]["seeds"] == [8.0, 10.0] and found["num_steps"]["mean"] == 9.0
    assert found["greedy"]["mean"] == pytest.approx(0.4) and found["alarms"] == [(3, "steps"), None]
    assert summary["before"]["num_steps"]["seeds"] == [5.0, 7.0]
    assert summary["before"]["greedy"]["mean"] == 0.25
    table = hacking.markdown(summary)
    assert "| 3 (steps); none |" in table and "2 CPU-minutes" in table
    assert "9.00 [-3.71, 21.71]" in table  # 9 +- 12.706 x sd sqrt(2) / sqrt(2)
