"""The weights of the best validation so far, kept beside a run.

best = BestWeights(Path("runs/prm"), "valid/step_auc", accelerator)
best.offer(model, metrics); best.restore(model)
"""

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import write_atomically
from prm.checkpoint import save_model
from prm.lora import has_adapters, merge
from prm.model import load_prm
from prm.sharding import require_whole_weights


class BestWeights:
    """The weights of the best validation so far, in output_dir/best; off without a metric's name."""

    def __init__(
        self, run_dir: Path, metric: str | None, accelerator: Any, *, load: Callable[[Path], Any] = load_prm
    ) -> None:
        if metric:
            require_whole_weights(accelerator, "the weights of the best validation (keep_best)")
        self.load = load
        self.folder = run_dir / "best"
        self.record = run_dir / "best.json"
        self.metric = metric
        self.is_main = accelerator.is_main_process

    def clear(self) -> None:
        """Forget the best of an earlier run in the folder."""
        if self.metric and self.is_main:
            self.record.unlink(missing_ok=True)

    def offer(self, model: Any, metrics: Mapping[str, float]) -> None:
        """Save the model if its metric is the best so far. Raises UserError where there is no such metric."""
        if self.metric is None or not self.is_main:
            return
        if self.metric not in metrics:
            raise UserError(f"keep_best: no metric '{self.metric}'; known: {', '.join(sorted(metrics))}")
        value = metrics[self.metric]
        if value > self._value():
            save_model(self.folder, _without_adapters(model))
            write_atomically(self.record, json.dumps({"metric": self.metric, "value": value}))

    def _value(self) -> float:
        """The best value so far. A resumed run repeats its validations, so a later one may stand here."""
        if not self.record.exists():
            return -math.inf
        record = json.loads(self.record.read_text(encoding="utf-8"))
        return record["value"] if record["metric"] == self.metric else -math.inf

    def restore(self, model: Any) -> None:
        """Give the model the best weights, where any were saved."""
        if self.metric and self._value() > -math.inf:
            model.load_state_dict(self.load(self.folder).state_dict())


def _without_adapters(model: Any) -> Any:
    """The model itself, or a merged copy where adapters are in it."""
    if not has_adapters(model):
        return model
    merged = copy.deepcopy(model)
    merge(merged)
    return merged
