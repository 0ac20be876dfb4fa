"""Scoring steps with vLLM: the StepScorer of a PRM with a class head, run by the engine instead of torch.

    with VllmScorer.load("runs/prm/model") as scorer:
        scorer.score(["2 + 2?"], [["2 + 2 = 4", "The answer is 4."]])   # [[0.97, 0.95]]

The engine gets the token ids that the local scorers make and returns the head's outputs at every token
(pooling task token_classify, all tokens, no activation); they are read at the same places in the same way.
So a score differs from the local one only by rounding: under 1e-4 in float32. Heads that are part of the
checkpoint and that vLLM knows are served: a token classifier (our own PRMs, TRL's, PURE's ...) and
Qwen2.5-Math-PRM's two layers.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from data.errors import UserError
from prm.formats.encode import encode_all
from prm.formats.readout import READ, WIDTH
from prm.formats.spec import PRMFormat
from prm.model import FORMAT as STEPWELL
from prm.model import check_rows, encode_solutions, load_config, load_tokenizer, positions_of
from prm.readout import objective_of, to_scores

TASK = "token_classify"
SERVED_HEADS = ("classifier", "two_layer")
CPU_CACHE_GIB = "1"
"""Key-value space on a CPU unless VLLM_CPU_KVCACHE_SPACE says otherwise; steps are read in one pass."""

Encode = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[Any]]
"""(problems, solutions) -> objects with `input_ids` and `step_ends` (index, or None where it did not fit)."""
Read = Callable[[Tensor], Tensor]
"""Head outputs (N, C) f32 -> scores (N,) f32."""


class VllmScorer:
    """A StepScorer over a vLLM engine. `close` (or a `with`) ends the engine and frees its memory."""

    def __init__(self, engine: Any, encode: Encode, read: Read) -> None:
        self.engine, self.encode, self.read = engine, encode, read

    @classmethod
    def load(
        cls,
        path: str | Path,
        spec: PRMFormat | None = None,
        *,
        dtype: str = "float32",
        max_length: int | None = None,
        memory: float = 0.4,
        in_process: bool = False,
    ) -> Self:
        """Start an engine over the PRM at `path`, a folder or hub id.

        spec: the format; None is our own. dtype: of the weights. max_length: tokens of one solution, at most
        the format's and the model's; steps beyond it score None. memory: share of a GPU's memory that the
        engine may take. in_process: run the engine in this process, which starts sooner; vLLM then sets
        torch's threads and process groups, so keep it out of a process that trains.

        Raises UserError when vLLM is not installed, does not serve the format's head, or cannot start.
        """
        config, tokenizer = load_config(path), load_tokenizer(path)
        _refuse_unserved(path, spec, config)
        check_rows(config.get_text_config().vocab_size, tokenizer)
        limits = [max_length, spec.max_length if spec else None, positions_of(config)]
        limit = min((each for each in limits if each is not None), default=None)
        engine = _start(path, dtype=dtype, max_length=limit, memory=memory, in_process=in_process)
        if spec is None or spec.name == STEPWELL:
            joiner = getattr(config, "step_joiner", "\n")

            def encode(problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> Sequence[Any]:
                return encode_solutions(tokenizer, problems, solutions, joiner=joiner, max_length=limit)

            return cls(engine, encode, to_scores)

        def encode_format(problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> Sequence[Any]:
            return encode_all(tokenizer, spec, problems, solutions, max_length=limit)

        return cls(engine, encode_format, _reader(spec))

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return the score of every step, in the order given; None where it did not fit."""
        if self.engine is None:
            raise UserError("this scorer was closed; load it again")
        encoded = self.encode(problems, solutions)
        results: list[list[float | None]] = [[None] * len(solution.step_ends) for solution in encoded]
        wanted = [i for i, one in enumerate(encoded) if any(end is not None for end in one.step_ends)]
        if not wanted:
            return results
        outputs = _outputs(self.engine, [encoded[i].input_ids for i in wanted])
        for i, logits in zip(wanted, outputs, strict=True):
            if len(logits) != len(encoded[i].input_ids):
                raise RuntimeError(
                    f"vLLM returned {len(logits)} outputs for {len(encoded[i].input_ids)} tokens"
                )
            read = [(step, end) for step, end in enumerate(encoded[i].step_ends) if end is not None]
            scores = self.read(logits[[end for _, end in read]]).tolist()
            for (step, _), score in zip(read, scores, strict=True):
                results[i][step] = score
        return results

    def close(self) -> None:
        """End the engine. Scoring afterwards is a UserError."""
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()
            # An engine in this process shuts down again when it is collected: now, not under the next one.
            del engine
            gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refuse_unserved(path: str | Path, spec: PRMFormat | None, config: Any) -> None:
    """Raise UserError for what a class head in the engine cannot do."""
    if spec is None or spec.name == STEPWELL:
        if objective_of(config) == "implicit":
            raise UserError(f"{path}: an implicit PRM compares two models; score it with prm_backend local")
        return
    if spec.head not in SERVED_HEADS:
        raise UserError(
            f"{path}: format '{spec.name}' reads head '{spec.head}', and vLLM serves "
            f"{' and '.join(SERVED_HEADS)}; score it with prm_backend local"
        )
    if spec.mask_separators:
        raise UserError(
            f"format '{spec.name}' hides separators from attention, which vLLM cannot; "
            "score it with prm_backend local"
        )


def _reader(spec: PRMFormat) -> Read:
    def read(logits: Tensor) -> Tensor:
        expected = WIDTH.get(spec.readout, logits.shape[1])
        if logits.shape[1] != expected:
            raise UserError(
                f"format '{spec.name}' reads {expected} outputs, the model's head has {logits.shape[1]}; "
                "name another --format"
            )
        return READ[spec.readout](logits)

    return read


def _start(path: str | Path, *, dtype: str, max_length: int | None, memory: float, in_process: bool) -> Any:
    """Return a running `vllm.LLM` for pooling. Raises UserError when it cannot be had."""
    with _environment(in_process):
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                f"prm_backend vllm needs vLLM, which is not installed ({error}); pip install 'stepwell[vllm]'"
            ) from error
        engine = None
        try:
            engine = LLM(
                str(path),
                runner="pooling",
                dtype=dtype,
                skip_tokenizer_init=True,
                max_model_len=max_length,
                gpu_memory_utilization=memory,
                distributed_executor_backend="uni",
                enforce_eager=True,  # one pass a solution: nothing is repeated that compiling would speed up
                enable_prefix_caching=False,  # outputs of cached tokens would be missing
                disable_log_stats=True,
                use_tqdm_on_load=False,
                pooler_config={"task": TASK, "tok_pooling_type": "ALL", "use_activation": False},
            )
            # What an attention kernel does not support shows with the first token only.
            _outputs(engine, [[0]])
            return engine
        except (RuntimeError, ValueError, MemoryError) as error:
            error.__traceback__ = None  # its frames hold the engine
            if engine is not None:
                engine.llm_engine.engine_core.shutdown()
                engine = None
            gc.collect()
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{path}: vLLM cannot start ({first}); if it is memory, lower max_length (tokens of a "
                f"solution, now {max_length}), or give it more: a larger share of the GPU, "
                "VLLM_CPU_KVCACHE_SPACE (GiB) on a CPU"
            ) from error


def _outputs(engine: Any, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the head's outputs (T, C) f32 at every token of every sequence."""
    from vllm import PoolingParams

    prompts = [{"prompt_token_ids": list(ids)} for ids in token_ids]
    params = PoolingParams(use_activation=False)
    outputs = engine.encode(prompts, params, pooling_task=TASK, use_tqdm=False)
    return [output.outputs.data.float() for output in outputs]


@contextmanager
def _environment(in_process: bool) -> Iterator[None]:
    """What vLLM reads when an engine starts, the user's values where set; all is as before afterwards."""
    before = dict(os.environ)
    for name, value in (
        ("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB),
        ("VLLM_LOGGING_LEVEL", "ERROR"),
        ("VLLM_NO_USAGE_STATS", "1"),
    ):
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"
    # A forked child of a process whose torch has run its threads can hang in them.
    os.environ["VLLM_WORKER_MULTIPROCESSING_METHOD"] = "spawn"
    try:
        yield
    finally:
        os.environ.clear()  # vLLM itself sets more, some of which launchers read as theirs
        os.environ.update(before)
