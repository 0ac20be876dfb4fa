"""The order of sampling, training and weight sync: in turns, or sampling ahead while the last batch trains.

With max_ahead 0 a batch is sampled when it is asked for. With max_ahead k a thread samples up to k batches
beyond the one in training; weights are sent between batches, never into one, so a batch has one version.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

from data.protocols import Stateful, TextGenerator
from reasoning_rl.rollout.vllm_weights import ActorWeights

T = TypeVar("T")
JOIN_SECONDS = 10.0
"""For the thread's last batch, whose requests fail once the generator is closed."""


@dataclass
class _Batch(Generic[T]):
    """One batch in the queue, from the moment it is asked for."""

    states: dict[str, Any] | None = None
    """What sampler and generator were like just before it; none until it is begun."""
    version: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of it in which the trainer stood still."""
    result: list[T] = field(default_factory=list)
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class RolloutPipeline(Generic[T]):
    """Samples batches, keeps the generator's weights current, and knows what a checkpoint must hold of both.

    sample: draws problems from `sampler` and responses from `generator`; it is called in the order of the
    batches, and in a thread of its own where max_ahead is above 0.
    accelerator: of a run whose processes sample from one engine, which then gets its weights from the main
    process; none: there is one process.
    """

    def __init__(
        self,
        generator: TextGenerator,
        sampler: Stateful,
        sample: Callable[[], T],
        *,
        max_ahead: int = 0,
        accelerator: Any = None,
    ) -> None:
        self.generator: Any = generator
        self.stateful: dict[str, Any] = {"generator": generator, "sampler": sampler}
        self.sample = sample
        self.max_ahead = max_ahead
        self.accelerator = accelerator
        self.version = 0
        """Of the weights that the batch in training was sampled with."""
        self._queue: deque[_Batch[T]] = deque()
        self._turn = threading.Condition()
        self._sampled: _Batch[T] | None = None
        """The batch that the thread is sampling."""
        self._is_syncing = False
        self._is_closed = False
        self._seconds: dict[str, float] = {}
        self._thread: threading.Thread | None = None

    def next(self, *, left: int | None = None) -> T:
        """Return the oldest batch, waiting for it. Raises what sampling it raised.

        left: batches that will be asked for after this one; none: nobody knows. No more are sampled ahead.
        """
        self._seconds = {}
        if self.max_ahead == 0:
            batch = _Batch[T]()
            self._run(batch)
        else:
            batch = self._next_from_queue(self.max_ahead if left is None else min(left, self.max_ahead))
        if batch.error is not None:
            raise batch.error
        self.version = batch.version
        return batch.result[0]

    def _next_from_queue(self, ahead: int) -> _Batch[T]:
        with self._turn:
            while len(self._queue) < 1 + ahead:
                self._queue.append(_Batch())
            self._turn.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rollouts", daemon=True)
            self._thread.start()
        started = time.perf_counter()
        self._queue[0].done.wait()
        with self._turn:
            batch = self._queue.popleft()
        batch.waited += time.perf_counter() - started
        self._seconds["time/overlap_seconds"] = max(0.0, batch.seconds - batch.waited)
        return batch

    def sync(self, policy: nn.Module, version: int) -> None:
        """Give the generator the policy's weights, after the batch that is being sampled.

        A generator that holds the policy itself only notes the version. Call it on every process, with whole
        weights: none samples with the new ones before all have ended their batch.
        """
        started = time.perf_counter()
        with self._turn:
            self._is_syncing = True
            sampled = self._sampled
            self._turn.wait_for(lambda: self._sampled is None)
        if sampled is not None:
            sampled.waited += time.perf_counter() - started
        try:
            if hasattr(self.generator, "push"):
                self._push(policy, version)
                self._seconds["time/push_seconds"] = self.generator.sync.last.seconds
            else:
                self.generator.version = version
        finally:
            with self._turn:
                self._is_syncing = False
                self._turn.notify_all()

    def _push(self, policy: nn.Module, version: int) -> None:
        everyone = self.accelerator.wait_for_everyone if self.accelerator is not None else lambda: None
        is_main = self.accelerator is None or self.accelerator.is_main_process
        everyone()
        if is_main:
            bucket_bytes = self.generator.config.sync_bucket_mb * 2**20
            self.generator.push(ActorWeights(policy, bucket_bytes), version)
        everyone()
        if not is_main:
            self.generator.follow(version)

    def rest(self) -> None:
        """Free what memory the generator can do without until the next sync."""
        if hasattr(self.generator, "sleep") and self.max_ahead == 0:
            self.generator.sleep()

    def metrics(self, iteration: int) -> dict[str, float]:
        """What engines beside the trainer cost and how old their samples were, since the last `next`."""
        if not hasattr(self.generator, "push"):
            return {}
        return {
            "rollout/updates_behind": float(iteration - 1 - self.version),
            "sync/mib": self.generator.sync.last.num_bytes / 2**20,
            **self._seconds,
        }

    def parts(self) -> dict[str, Stateful]:
        """Sampler and generator for a checkpoint: as they were before the batches that nobody trained on."""
        return {name: _Rewound(self, name) for name in self.stateful}

    def close(self) -> None:
        """Sample no further batch; end what the generator started, and with it the batch in progress."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()
        if hasattr(self.generator, "close"):
            self.generator.close()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._is_closed or (not self._is_syncing and self._waiting()))
                if self._is_closed:
                    return
                batch = self._waiting()
                assert batch is not None
                self._sampled = batch
                batch.states = {name: part.state_dict() for name, part in self.stateful.items()}
            self._run(batch)
            with self._turn:
                self._sampled = None
                self._turn.notify_all()
            batch.done.set()

    def _waiting(self) -> _Batch[T] | None:
        return next((batch for batch in self._queue if batch.states is None), None)

    def _run(self, batch: _Batch[T]) -> None:
        batch.version = self.generator.version
        started = time.perf_counter()
        try:
            if hasattr(self.generator, "forget_prefixes"):
                # What was computed before must not decide how a batch is computed: a resumed run lacks it.
                self.generator.forget_prefixes()
            batch.result.append(self.sample())
        except BaseException as error:  # raised again by `next`, in the trainer's thread
            batch.error = error
        batch.seconds = time.perf_counter() - started


@dataclass(frozen=True)
class _Rewound:
    """A Stateful that forgets the batches sampled ahead: a resumed run samples them again."""

    pipeline: RolloutPipeline[Any]
    name: str

    def state_dict(self) -> dict[str, Any]:
        with self.pipeline._turn:
            oldest = next((b.states for b in self.pipeline._queue if b.states is not None), None)
            if oldest is not None:
                return oldest[self.name]
            return self.pipeline.stateful[self.name].state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pipeline.stateful[self.name].load_state_dict(state)
