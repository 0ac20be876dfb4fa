"""TensorBoard and Weights & Biases beside a run's own files, through accelerate's tracker classes.

They are handed what metrics.jsonl and timing.jsonl get, under the same names and steps, by the process that
writes those. A resumed run continues its TensorBoard folder from the checkpoint's step, and its W&B run.

    with Trackers(config.tracking, config.output_dir, settings, resume=False) as trackers:
        log = RunLog(config.output_dir, trackers=trackers)
"""

import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator

from data.errors import UserError
from data.files import write_atomically
from data.settings import Settings

INSTALL = {"tensorboard": "pip install 'stepwell[track]'", "wandb": "pip install wandb"}


class TrackingConfig(Settings):
    """Programs that are told every logged number, besides the run's own files."""

    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """tensorboard (files in tensorboard/ of output_dir), wandb, or both with a comma between."""
    project: str = "stepwell"
    """Project that the run belongs to (wandb)."""
    name: str | None = None
    """Name of the run (wandb); null: that of output_dir."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return (
            [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
        )

    @field_validator("trackers")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))  # two writers of one folder would each write every number


def require_trackers(config: TrackingConfig) -> None:
    """Raise UserError, with the command that installs it, for a tracker that is not there."""
    for name in config.trackers:
        if find_spec(name) is None:
            raise UserError(f"tracking.trackers: {name} is not installed: {INSTALL[name]}")


class Trackers:
    """The trackers of one run; nothing is written before `start`, and leaving the block closes all."""

    def __init__(
        self, config: TrackingConfig, run_dir: str | Path, settings: Mapping[str, Any], *, resume: bool
    ) -> None:
        require_trackers(config)
        self.config, self.run_dir, self.settings, self.resume = config, Path(run_dir), settings, resume
        self.running: list[Any] = []

    def start(self, after: int) -> None:
        """Open all of them, for steps above `after`: what an interrupted run noted beyond is replaced.

        Raises UserError when one cannot start.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        assert not self.running, "started twice"
        for name in self.config.trackers:
            tracker = LOGGER_TYPE_TO_CLASS[name](**self._options(name, after))
            try:
                tracker.start()
            except Exception as error:
                said = str(error).splitlines()[0] if str(error) else type(error).__name__
                remedy = "wandb login, or set WANDB_MODE=offline" if name == "wandb" else "check output_dir"
                raise UserError(f"tracking.trackers: {name} cannot start ({said}); {remedy}") from error
            self.running.append(tracker)
            if name == "wandb":
                tracker.store_init_configuration(dict(self.settings))

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.running:
            tracker.log({name: value for name, value in metrics.items() if value is not None}, step=step)

    def _options(self, name: str, after: int) -> dict[str, Any]:
        """What accelerate's class of that name is made with."""
        if name == "tensorboard":
            return {"run_name": name, "logging_dir": self.run_dir, "purge_step": max(after, -1) + 1}
        return {
            "run_name": self.config.project,
            "name": self.config.name or self.run_dir.name,
            "dir": str(self.run_dir),
            "id": self._wandb_id(),
            "resume": "allow",
        }

    def _wandb_id(self) -> str:
        """The run's id, kept beside its metrics: a resumed run goes on in the same curves."""
        path = self.run_dir / "wandb_id"
        if not (self.resume and path.exists()):
            write_atomically(path, secrets.token_hex(4))
        return path.read_text(encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self.running:
            self.running.pop().finish()
