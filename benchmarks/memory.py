"""Memory and time of one PPO iteration with four models of 34 M parameters, setting by setting.

    python benchmarks/memory.py --json memory.json                     # about 10 minutes on one core

Policy, reference, critic and reward model are made here: Qwen2 of 6 layers, width 512 and 32,768 words,
random weights. 16 responses of 128 tokens to prompts of 40 words, one minibatch and one micro-batch: what is
measured is what a setting changes, not what a smaller micro_batch_tokens would save. Each row runs two
iterations in a process of its own; of the second are shown the CPU-seconds and, phase by phase, the peaks of
resident memory (docs/metrics.md), less what the process held before it made any model. "states" is what
weights, gradients and moments of all models take by count, "formula" what `stepwell plan` would say of the
update's peak. The C library is told to give freed blocks back (MALLOC_*), as a GPU's allocator reuses them:
else peaks are those of what was ever held, and seconds are fewer.

--json FILE keys: rows.NAME {states_mb, peak_mb, phases {phase: MB}, cpu_s}; threads, versions.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VOCABULARY, WIDTH, INNER, LAYERS = 32_768, 512, 1408, 6
PROMPT, RESPONSE, RESPONSES = 40, 128, 16
PHASES = ("generate", "score", "reference", "experience", "update")
LORA = {"rank": 16, "alpha": 32.0}
ROWS: dict[str, dict[str, Any]] = {
    "all logits at once": {"all_logits": True},
    "logits in chunks": {},
    "+ gradient checkpointing": {"checkpointing": True},
    "+ bf16": {"checkpointing": True, "bf16": True},
    "LoRA": {"lora": LORA},
    "LoRA + gradient checkpointing": {"lora": LORA, "checkpointing": True},
    "LoRA + both + bf16": {"lora": LORA, "checkpointing": True, "bf16": True},
    "QLoRA + gradient checkpointing": {"lora": LORA | {"quantize": "nf4"}, "checkpointing": True},
}
"""Name -> settings. The first is how logprobs are usually computed; all others read logits in chunks."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(**ROWS[args.worker])), flush=True)
        return
    rows = {}
    for name in args.rows:
        rows[name] = run_row(name, args.threads)
        print(f"done: {name}", file=sys.stderr, flush=True)
    from reasoning_rl.telemetry import versions

    summary = {"rows": rows, "threads": args.threads, "versions": versions()}
    print(table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps(summary, indent=1))


def run_row(name: str, threads: int) -> dict[str, Any]:
    """One row's measurements, made in a process of its own."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
    }
    command = [sys.executable, __file__, "--worker", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name}: the measurement ended with code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: dict[str, dict[str, Any]]) -> str:
    from reasoning_rl.live import grid_text

    lines = [("MiB", "states", *PHASES, "formula", "CPU-s")]
    for name, row in rows.items():
        numbers = (row["states_mb"], *(row["phases"][phase] for phase in PHASES), formula_mb(name, row))
        lines.append((name, *(f"{number:,.0f}" for number in numbers), f"{row['cpu_s']:.1f}"))
    return grid_text(lines)


def formula_mb(name: str, row: dict[str, Any]) -> float:
    """What `stepwell plan` would say of the update: states, activations of one model, logits."""
    from prm.next_token import CHUNK
    from reasoning_rl.plan import Model, activation_bytes, logit_bytes

    settings, actions = ROWS[name], RESPONSES * RESPONSE
    model = Model(0, LAYERS, WIDTH, 2, 64, VOCABULARY)
    activations = activation_bytes(
        model, RESPONSES * (PROMPT + RESPONSE), checkpointing=settings.get("checkpointing", False)
    )
    activations *= 1 if settings.get("bf16") else 2  # its formulas are those of bf16
    logits = logit_bytes(model, actions if settings.get("all_logits") else min(actions, CHUNK))
    return row["states_mb"] + (activations + logits) / 2**20


# --- one row ---------------------------------------------------------------------------------------------


def measure(
    *,
    all_logits: bool = False,
    checkpointing: bool = False,
    bf16: bool = False,
    lora: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run two iterations; return what the second took."""
    import random

    import torch
    from accelerate import Accelerator

    from data.machine import take_peak_rss_mb
    from data.schema import Problem, Verdict
    from prm import next_token
    from prm.model import classifier, new_prm
    from prm.scorer import LocalScorer
    from prm.sharding import compute_dtype
    from reasoning_rl.config import PPOConfig
    from reasoning_rl.learner import Learner
    from reasoning_rl.models import critic_from_policy
    from reasoning_rl.ppo import run_ppo
    from reasoning_rl.telemetry import RunLog

    if all_logits:
        next_token.SMALL = 2**62
    if lora:
        import peft  # noqa: F401
    if lora and lora.get("quantize"):
        import bitsandbytes  # noqa: F401
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = words_tokenizer()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no")
    take_peak_rss_mb()
    before = take_peak_rss_mb()
    policy = make_policy()
    prm = new_prm(policy)
    torch.nn.init.normal_(classifier(prm).weight)
    prm.to(compute_dtype(accelerator)).requires_grad_(False)
    words = random.Random(0)
    problems = [
        Problem(str(i), " ".join(f"w{words.randrange(1000)}" for _ in range(PROMPT)), "0")
        for i in range(RESPONSES)
    ]
    marks = []

    class TimedLog(RunLog):
        def __call__(self, iteration: int, metrics: Any) -> None:
            marks.append(time.process_time())
            super().__call__(iteration, metrics)

    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        config = PPOConfig.from_preset(
            {
                "preset": "vanilla",
                "policy": "made here",
                "prm": "made here",
                "output_dir": folder,
                "iterations": 2,
                "save_every": 0,
                "lora": lora or {},
                "critic": {"lora": lora or {}},
                "rollout": {
                    "problems_per_iteration": RESPONSES,
                    "samples_per_problem": 1,
                    "max_new_tokens": RESPONSE,
                },
                "update": {
                    "minibatch_size": RESPONSES,
                    "micro_batch_tokens": 65_536,
                    "gradient_checkpointing": checkpointing,
                },
            }
        )
        learner = Learner(
            config,
            accelerator,
            policy=policy,
            reference=None if lora else make_policy(),
            critic=critic_from_policy(make_policy()),
        )
        run_ppo(
            config.model_copy(update={"output_dir": f"{folder}/run"}),
            learner=learner,
            tokenizer=tokenizer,
            problems=problems,
            render=lambda text: text,
            scorer=LocalScorer(prm, tokenizer),
            grader=lambda problem, response: Verdict("correct" if len(response) % 2 else "wrong"),
            log=TimedLog(f"{folder}/run"),
        )
        last = json.loads(Path(f"{folder}/run/timing.jsonl").read_text().splitlines()[-1])
    phases = {phase: last[f"memory/{phase}_rss_mb"] - before for phase in PHASES}
    return {
        "states_mb": states_mb(learner, prm),
        "phases": phases,
        "peak_mb": max(phases.values()),
        "cpu_s": marks[1] - marks[0],
    }


def states_mb(learner: Any, prm: Any) -> float:
    """MiB of all weights, and 12 bytes more of each parameter that learns: its gradient and moments."""
    models = [learner.actor.module, learner.critic.module, prm]
    if hasattr(learner.reference, "module"):
        models.append(learner.reference.module)
    parameters = {id(p): p for model in models for p in model.parameters()}.values()
    return sum(p.numel() * (p.element_size() + 12 * p.requires_grad) for p in parameters) / 2**20


def make_policy() -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=1,
    )
    return Qwen2ForCausalLM(config).eval()


def words_tokenizer() -> Any:
    """One token for each made-up word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<eos>", "<pad>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


if __name__ == "__main__":
    main()
