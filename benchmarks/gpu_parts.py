"""What benchmarks/gpu.py times: each part makes its models, runs the project's own function, and counts.

Sequences of a part are equally long, so that model FLOPs can be told from the shape alone.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from gpu_timing import PART_SECONDS, REPEATS, WARM_UP, Enough, Marks, Place, repeat, warmed
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config

from data.schema import Problem, Sampling, StepSolution, Verdict
from prm.fit import FitConfig, fit
from prm.model import classifier, new_prm
from prm.scorer import LocalScorer
from prm.sharding import compute_dtype
from prm.train import PRMConfig, fit_prm
from reasoning_rl.config import PPOConfig
from reasoning_rl.learner import Learner
from reasoning_rl.models import critic_from_prm
from reasoning_rl.ppo import run_ppo
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.sft import EncodedPair, NextToken

STEP_WORDS = 24


@dataclass(frozen=True)
class Shape:
    """A decoder, and the batches that it is timed on; lengths in tokens."""

    config: type[Qwen2Config] | type[Qwen3Config]
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    rows: int = 32
    """Sequences of one update of SFT or PRM; the scorer gets twice as many."""
    length: int = 1024
    problems: int = 64
    samples: int = 4
    prompt: int = 128
    response: int = 128
    head_width: int = 64

    def forward_flops(self, *, rows: float, length: float, logits: float) -> float:
        """Model FLOPs of causal sequences, `logits` positions of which go through the LM head."""
        queries, pairs = self.heads * self.head_width, self.kv_heads * self.head_width
        body = self.layers * self.width * (2 * queries + 2 * pairs + 3 * self.inner)
        attention = 2 * self.layers * queries * length * (length + 1)  # position t looks at t keys, twice
        return rows * (2 * body * length + attention) + 2 * self.width * self.vocabulary * logits


SHAPES = {
    "tiny": Shape(Qwen3Config, 32, 64, 2, 2, 1, 512, 4, 48, 4, 2, 12, 8, 16),
    "0.1b": Shape(Qwen3Config, 768, 2048, 12, 12, 4, 32_768),
    "0.5b": Shape(Qwen2Config, 896, 4864, 24, 14, 2, 151_936),  # Qwen2.5-0.5B's own
}


# --- models and texts ------------------------------------------------------------------------------------


def make_policy(shape: Shape, device: torch.device) -> PreTrainedModel:
    """A causal LM with random float32 weights, made where it is to be."""
    torch.manual_seed(0)
    config = shape.config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=1,
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def make_prm(policy: PreTrainedModel) -> PreTrainedModel:
    """A PRM of the policy's size, whose scores differ."""
    with policy.device:
        prm = new_prm(policy)
        torch.nn.init.normal_(classifier(prm).weight, std=0.02)
    return prm


def words_tokenizer(vocabulary: int) -> Any:
    """One token for each made-up word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<eos>", "<pad>", "<unk>", *(f"w{i}" for i in range(vocabulary - 3))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def some_words(rng: Random, shape: Shape, count: int) -> str:
    return " ".join(f"w{rng.randrange(shape.vocabulary - 3)}" for _ in range(count))


def make_solutions(shape: Shape, count: int) -> list[StepSolution]:
    """Step-labelled solutions of exactly `shape.length` tokens with their problem."""
    rng, out = Random(1), []
    prompt = shape.length // 4
    starts = range(prompt, shape.length, STEP_WORDS)
    for i in range(count):
        steps = [some_words(rng, shape, min(STEP_WORDS, shape.length - start)) for start in starts]
        labels = tuple(float(rng.random() < 0.5) for _ in steps)
        out.append(StepSolution(some_words(rng, shape, prompt), tuple(steps), labels, str(i)))
    return out


def fit_config(shape: Shape, place: Place) -> FitConfig:
    """Every update takes all examples; nothing is written."""
    return FitConfig(
        epochs=WARM_UP + REPEATS,
        batch_size=shape.rows,
        micro_batch_tokens=place.micro_batch_tokens,
        save_every=None,
    )


# --- the parts -------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What a part was seen to do; tokens and FLOPs of one repeat."""

    parameters: int
    tokens: float
    flops: float
    seconds: list[float]
    peak_gpu_mib: float | None = None
    """Where the part knows better than the allocator's peak since the part began."""
    phases: dict[str, float] | None = None


def sft(shape: Shape, place: Place, deadline: float) -> Found:
    policy, marks, rng = make_policy(shape, place.device), Marks(place.device, deadline), Random(0)
    prompt = shape.length // 4
    pairs = [
        EncodedPair([rng.randrange(3, shape.vocabulary) for _ in range(shape.length)], prompt, str(i))
        for i in range(shape.rows)
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        fit(
            policy,
            pairs,
            NextToken(),
            fit_config(shape, place),
            accelerator=place.accelerator(),
            run_dir=folder,
            log=marks,
        )
    flops = shape.forward_flops(
        rows=shape.rows, length=shape.length, logits=shape.rows * (shape.length - prompt)
    )
    return Found(policy.num_parameters(), shape.rows * shape.length, 3 * flops, marks.seconds)


def prm_training(shape: Shape, place: Place, deadline: float) -> Found:
    prm, marks = make_prm(make_policy(shape, place.device)), Marks(place.device, deadline)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        fit_prm(
            prm,
            words_tokenizer(shape.vocabulary),
            make_solutions(shape, shape.rows),
            [],
            PRMConfig(data="made here", output_dir=folder, supervise="all", fit=fit_config(shape, place)),
            accelerator=place.accelerator(),
            log=marks,
        )
    flops = shape.forward_flops(rows=shape.rows, length=shape.length, logits=0)
    return Found(prm.num_parameters(), shape.rows * shape.length, 3 * flops, marks.seconds)


def prm_scoring(shape: Shape, place: Place, deadline: float) -> Found:
    prm = make_prm(make_policy(shape, place.device)).to(compute_dtype(place.accelerator()))
    scorer = LocalScorer(prm, words_tokenizer(shape.vocabulary), device=place.device)
    solutions = make_solutions(shape, 2 * shape.rows)
    problems, steps = [s.problem for s in solutions], [s.steps for s in solutions]
    seconds = repeat(lambda: scorer.score(problems, steps), place.device, deadline)
    flops = shape.forward_flops(rows=len(solutions), length=shape.length, logits=0)
    return Found(prm.num_parameters(), len(solutions) * shape.length, flops, seconds)


def rollouts(shape: Shape, place: Place, deadline: float, dtype: torch.dtype = torch.float32) -> Found:
    policy, rng = make_policy(shape, place.device).to(dtype), Random(2)
    batch = shape.problems * shape.samples
    generator = HFGenerator(policy, words_tokenizer(shape.vocabulary), max_batch=batch)
    prompts = [some_words(rng, shape, shape.prompt) for _ in range(shape.problems)]
    sampling = Sampling(max_new_tokens=shape.response, temperature=1.0, n=shape.samples)
    sampled: list[int] = []

    def work() -> None:
        drawn = generator.generate(prompts, sampling)
        sampled.append(sum(len(sample.token_ids) for group in drawn for sample in group))

    seconds = repeat(work, place.device, deadline)
    tokens = statistics.median(warmed(sampled))
    return Found(policy.num_parameters(), tokens, sampling_flops(shape, tokens), seconds)


def rollouts_bf16(shape: Shape, place: Place, deadline: float) -> Found:
    return rollouts(shape, place, deadline, torch.bfloat16)


def sampling_flops(shape: Shape, tokens: float) -> float:
    """Of `tokens` responses' tokens in all; a prompt is read once for all its samples."""
    batch = shape.problems * shape.samples
    whole = shape.forward_flops(rows=batch, length=shape.prompt + tokens / batch, logits=tokens)
    again = shape.forward_flops(rows=batch - shape.problems, length=shape.prompt, logits=0)
    return whole - again


def ppo_iteration(shape: Shape, place: Place, deadline: float) -> Found:
    policy, rng = make_policy(shape, place.device), Random(3)
    marks = Marks(place.device, deadline, 2 * PART_SECONDS)
    tokenizer, batch = words_tokenizer(shape.vocabulary), shape.problems * shape.samples
    prm = make_prm(policy)
    with place.device:
        critic = critic_from_prm(prm)
    problems = [Problem(str(i), some_words(rng, shape, shape.prompt), "0") for i in range(shape.problems)]
    accelerator = place.accelerator()
    prm.to(compute_dtype(accelerator))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        config = PPOConfig.from_preset(
            {
                "preset": "ppo_max",
                "policy": "made here",
                "prm": "made here",
                "output_dir": folder,
                "iterations": WARM_UP + REPEATS,
                "save_every": 0,
                "rollout": {
                    "problems_per_iteration": shape.problems,
                    "samples_per_problem": shape.samples,
                    "max_new_tokens": shape.response,
                    "max_batch": batch,
                    # As the quickstart samples; the preset's nucleus would add a sort of the vocabulary.
                    "temperature": 1.0,
                    "top_p": 1.0,
                },
                "critic": {"pretrain_iterations": 0},
                "update": {"minibatch_size": batch // 4, "micro_batch_tokens": place.micro_batch_tokens},
            }
        )
        learner = Learner(config, accelerator, policy=policy, reference=deepcopy(policy), critic=critic)
        run_ppo(
            config,
            learner=learner,
            tokenizer=tokenizer,
            problems=problems,
            render=lambda text: text,
            scorer=LocalScorer(prm, tokenizer),
            grader=lambda problem, response: Verdict("correct" if len(response) % 2 else "wrong"),
            log=marks,
        )
    rows = warmed(marks.metrics)
    tokens = statistics.median(row["rollout/tokens"] for row in rows)
    length = shape.prompt + tokens / batch
    policy_flops = shape.forward_flops(rows=batch, length=length, logits=tokens)
    body_flops = shape.forward_flops(rows=batch, length=length, logits=0)
    # Reference and actor, PRM and critic read once; then actor and critic learn: a backward is two forwards.
    flops = sampling_flops(shape, tokens) + (2 + 3) * policy_flops + (2 + 3) * body_flops
    names = [name for name in rows[0] if name.startswith("time/")]
    peaks = [v for row in marks.metrics for name, v in row.items() if name.endswith("_gpu_mb")]
    return Found(
        policy.num_parameters(),
        batch * length,
        flops,
        marks.seconds,
        peak_gpu_mib=max(peaks, default=None),  # the run resets the allocator's peak at every phase
        phases={name[5:-8]: round(statistics.median(row[name] for row in rows), 4) for name in names},
    )


def measured(part: Callable[[Shape, Place, float], Found]) -> Callable[..., dict[str, Any]]:
    """A part as gpu.py calls it: size and place in, the row's numbers out. rate: FLOP/s; peak: TFLOP/s."""

    def measure(
        size: str, place: Place, deadline: float, *, rate: float, peak: float | None
    ) -> dict[str, Any]:
        on_gpu = place.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(place.device)
        found = part(SHAPES[size], place, deadline)
        memory = torch.cuda.max_memory_allocated(place.device) / 2**20 if on_gpu else None
        memory = max(memory, found.peak_gpu_mib or 0.0) if memory is not None else None
        seconds = statistics.median(warmed(found.seconds))
        speed = found.flops / seconds
        return {
            "parameters": found.parameters,
            "tokens": round(found.tokens),
            "seconds": seconds,
            "repeats": len(warmed(found.seconds)),
            "warmed_up": len(found.seconds) > 1,
            "tokens_per_s": found.tokens / seconds,
            "tflops": speed / 1e12,
            "mfu": speed / rate,
            "mfu_peak": speed / (peak * 1e12) if peak else None,
            "peak_gpu_mib": memory,
            **({"phases": found.phases} if found.phases else {}),
        }

    return measure


PARTS = {
    part.__name__: measured(part)
    for part in (sft, prm_training, prm_scoring, rollouts, rollouts_bf16, ppo_iteration)
}
