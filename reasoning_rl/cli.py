"""The `stepwell` command. Heavy imports wait until a verb runs, so that help appears at once.

A user's mistake (UserError, or a file the system refuses) prints its one or two lines and exits with code 2,
without a traceback.
"""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import Stopped, UserError, did_you_mean

_FORMAT = warnings.formatwarning


@dataclass(frozen=True)
class Verb:
    """One subcommand."""

    group: str
    purpose: str
    settings: str
    """Where its settings class is, "module:Name"; imported when the verb's help or the verb itself asks."""
    run: str
    """Where the function of its arguments is, "module:function"."""
    example: str
    flags: tuple[str, ...] = ()
    """Names in FLAGS: options without a value that are no settings."""
    more: tuple[str, str] | None = None
    """A second list of options: its heading and its settings class."""
    names: tuple[str, ...] = ()
    """Where the names are that its first word may be, each "module:mapping"."""


DETERMINISTIC = "take kernels with a deterministic form only (slower on GPUs); a CPU repeats itself anyway"
SHARED = ("sft", "prm", "rm", "dpo", "dpo-iter", "rft", "ppo")
"""Verbs that several processes of a launcher can share."""
FLAGS = {
    "fresh": "delete what an earlier run left in the output folder, and start anew",
    "json": "print one JSON object instead of a table",
    "list": "name what there is to choose from, and stop",
    "resume": "continue from the newest checkpoint in the output folder",
}


def load(where: str) -> Any:
    """Import what "module:name" says."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 2 for a user's mistake, 130 interrupted, 143 told to stop."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        _dispatch(words)
    except UserError as error:
        sys.stderr.write(f"stepwell: {error}\n")
        sys.exit(2)
    except Stopped as stop:
        sys.stderr.write(f"stepwell: {stop}\n")
        sys.exit(143)  # 128 + SIGTERM, as a process that the signal ended
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"stepwell: {error.filename}: {error.strerror}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        resumable = words and words[0] in VERBS and "resume" in VERBS[words[0]].flags
        again = "--resume continues" if resumable else "the same command continues"
        sys.stderr.write(f"stepwell: interrupted; {again} where it stopped\n")
        sys.exit(130)


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return
    if words[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"stepwell {version('stepwell')}\n")
        return
    name, rest = words[0], words[1:]
    if name not in VERBS:
        raise UserError(f"unknown command '{name}'" + did_you_mean(name, VERBS) + " (see stepwell --help)")
    if "-h" in rest or "--help" in rest:
        sys.stdout.write(verb_help(name, rest))
        return
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1" and "LOCAL_RANK" in os.environ and name not in SHARED:
        raise UserError(
            f"{name} is for one process and the launcher started {world}: start it without the launcher"
        )
    if "--deterministic" in rest:
        rest.remove("--deterministic")
        os.environ["STEPWELL_DETERMINISTIC"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Idle OpenMP threads that spin cost a busy machine many times the work they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Said on standard output, between a command's results, wherever DeepSpeed is installed without a GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator" not in record.getMessage())
    warnings.formatwarning = _one_line
    load(VERBS[name].run)(rest)
    _leave_group()


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What a command says of a damaged checkpoint or a hacked reward: words, without the line of code."""
    if category is UserWarning:
        return f"stepwell: {message}\n"
    return _FORMAT(message, category, filename, lineno, line)


def _leave_group() -> None:
    """End this process's part in a launcher's group; left to its destructor, a torch thread may abort it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def overview() -> str:
    """The text of `stepwell --help`."""
    lines = ["usage: stepwell COMMAND [--config FILE.yaml] [--option value ...]", ""]
    for group in dict.fromkeys(verb.group for verb in VERBS.values()):
        lines.append(group)
        lines += [f"  {name:<11} {verb.purpose}" for name, verb in VERBS.items() if verb.group == group]
        lines.append("")
    lines.append("stepwell COMMAND --help lists a command's options with their defaults and an example.")
    return "\n".join(lines) + "\n"


def verb_help(name: str, words: Sequence[str] = ()) -> str:
    """The text of `stepwell NAME WORDS --help`; of the words, those that choose a preset count."""
    import textwrap

    from reasoning_rl.options import describe

    verb = VERBS[name]
    lines = [f"stepwell {name}: {verb.purpose}", "", f"example:  {verb.example}"]
    if verb.names:
        known = ", ".join(word for where in verb.names for word in load(where))
        lines += ["", *textwrap.wrap(f"names:    {known}", 100, subsequent_indent=" " * 10)]
    settings, defaults = load(verb.settings), {}
    if hasattr(settings, "preset_values"):
        asked = {of: value for of in ("preset", "algorithm") if (value := _value_of(of, words))}
        defaults = settings.preset_values(asked, "command line") | asked
        other = "--preset NAME --help shows another's"
        lines += ["", f"options, with the defaults of preset {defaults['preset']} ({other})"]
    else:
        lines += ["", "options"]
    lines += [
        "  --config FILE",
        "      YAML file of the options below; options on the command line win over it",
    ]
    lines += ["  --deterministic", f"      {DETERMINISTIC}"] if "resume" in verb.flags else []
    for flag in verb.flags:
        lines += [f"  --{flag}", f"      {FLAGS[flag]}"]
    lists = [describe(settings, defaults)]
    if verb.more:
        lists.append(describe(load(verb.more[1])))
    for number, options in enumerate(lists):
        if number:
            lines += ["", verb.more[0] if verb.more else ""]
        for option, text in options:
            lines.append(f"  {option}")
            lines += textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """What `--option value` or `--option=value` last said."""
    found = None
    for word, after in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name == f"--{option}":
            found = value if equals else after
    return found


VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        "start here",
        "the whole road on the built-in world: SFT, step labels, PRM, PPO-max, evaluation",
        "reasoning_rl.eval_config:QuickstartConfig",
        "reasoning_rl.commands:run_quickstart_command",
        "stepwell quickstart --seed 1",
        ("fresh",),
    ),
    "label": Verb(
        "train",
        "label the steps of solutions by rollouts: Monte Carlo, binary search, OmegaPRM",
        "reasoning_rl.eval_config:LabelRunConfig",
        "reasoning_rl.commands:run_label",
        "stepwell label gsm8k --model runs/sft/model --k 8 --output-dir runs/label",
        names=("eval.benchmarks:BENCHMARKS",),
    ),
    "sft": Verb(
        "train",
        "fine-tune a causal language model on prompt-response pairs",
        "reasoning_rl.sft:SFTConfig",
        "reasoning_rl.commands:run_sft",
        "stepwell sft --model Qwen/Qwen2.5-0.5B --data pairs.jsonl --output-dir runs/sft",
        ("resume",),
    ),
    "prm": Verb(
        "train",
        "train a process reward model on step labels",
        "prm.train:PRMConfig",
        "reasoning_rl.commands:run_prm",
        "stepwell prm --model Qwen/Qwen2.5-Math-1.5B --data steps.jsonl --output-dir runs/prm",
        ("resume",),
    ),
    "rm": Verb(
        "train",
        "train a pairwise reward model: one number for a whole response",
        "reasoning_rl.reward_model:RMConfig",
        "reasoning_rl.commands_preference:run_rm",
        "stepwell rm --model runs/sft/model --data pairs.jsonl --output-dir runs/rm",
        ("resume",),
    ),
    "dpo": Verb(
        "train",
        "direct preference optimisation: a policy learns from pairs of responses",
        "reasoning_rl.dpo:DPOConfig",
        "reasoning_rl.commands_preference:run_dpo",
        "stepwell dpo --model runs/sft/model --data pairs.jsonl --output-dir runs/dpo",
        ("resume",),
    ),
    "dpo-iter": Verb(
        "train",
        "iterative DPO: sample, score, pair, prefer; of responses or of single steps",
        "reasoning_rl.dpo_iter:DPOIterConfig",
        "reasoning_rl.commands_preference:run_dpo_iter",
        "stepwell dpo-iter --policy runs/sft/model --problems gsm8k --rounds 4 --output-dir runs/dpo_iter",
        ("resume",),
    ),
    "rft": Verb(
        "train",
        "rejection sampling: fine-tune a policy on its own right answers",
        "reasoning_rl.rft:RFTConfig",
        "reasoning_rl.commands_preference:run_rft",
        "stepwell rft --policy runs/sft/model --problems gsm8k --output-dir runs/rft",
        ("resume",),
    ),
    "ppo": Verb(
        "train",
        "PPO-max with the PRM's scores as per-step rewards",
        "reasoning_rl.config:PPOConfig",
        "reasoning_rl.commands:run_ppo_command",
        "stepwell ppo --config configs/quickstart.yaml --kl.coef 0.05",
        ("resume",),
    ),
    "plan": Verb(
        "look",
        "memory and communication of a PPO run on each GPU, and which config to take",
        "reasoning_rl.plan_config:PlanConfig",
        "reasoning_rl.commands_plan:run_plan",
        "stepwell plan --model-size 7b --gpus 8",
    ),
    "serve": Verb(
        "train",
        "a vLLM server that rollouts are drawn from and a trainer sends weights to",
        "reasoning_rl.commands_serve:ServeConfig",
        "reasoning_rl.commands_serve:run_serve",
        "stepwell serve --model runs/sft/model --port 8000",
    ),
    "eval": Verb(
        "evaluate",
        "a benchmark: accuracy of a model or of samples, or what step scores find",
        "reasoning_rl.eval_config:EvalConfig",
        "reasoning_rl.commands:run_eval",
        "stepwell eval gsm8k --model runs/sft/model --limit 100 --num-samples 4",
        ("list",),
        more=(
            "options of the step benchmarks (stepwell eval processbench --prm PATH)",
            "reasoning_rl.eval_config:PRMEvalConfig",
        ),
        names=("eval.benchmarks:BENCHMARKS", "eval.prm_benchmarks:PRM_BENCHMARKS"),
    ),
    "search": Verb(
        "evaluate",
        "best of N, votes, beam search or DVTS: a reward model's scores choose and steer",
        "reasoning_rl.search_config:SearchConfig",
        "reasoning_rl.commands:run_search",
        "stepwell search gsm8k --model runs/sft/model --prm runs/prm/model --method beam --n 16",
        names=("eval.benchmarks:BENCHMARKS",),
    ),
    "duel": Verb(
        "evaluate",
        "win, tie, lose between two policies: by a reward model, a judge, or the answer",
        "reasoning_rl.duel:DuelConfig",
        "reasoning_rl.commands_preference:run_duel_command",
        "stepwell duel runs/ppo/model runs/sft/model --problems pairs.jsonl --problems-format prompts",
    ),
    "compare": Verb(
        "evaluate",
        "two evaluations problem by problem: difference, interval, what flipped",
        "reasoning_rl.eval_config:CompareConfig",
        "reasoning_rl.commands:run_compare",
        "stepwell compare outputs/base/gsm8k outputs/tuned/gsm8k",
    ),
    "data": Verb(
        "look",
        "inspect FILE: the step labels it holds, the benchmarks that share its problems",
        "reasoning_rl.eval_config:InspectConfig",
        "reasoning_rl.commands:run_data",
        "stepwell data inspect steps.jsonl --against processbench/ math500.jsonl",
    ),
    "score": Verb(
        "evaluate",
        "score every step of solutions with any published process reward model",
        "reasoning_rl.scoring:ScoreConfig",
        "reasoning_rl.commands:run_score",
        "stepwell score --prm Qwen/Qwen2.5-Math-PRM-7B --input solutions.jsonl --output scored.jsonl",
        ("list",),
    ),
    "doctor": Verb(
        "look",
        "this machine: packages, devices, isolation of programs, disk and memory, what to mend",
        "reasoning_rl.commands_doctor:DoctorConfig",
        "reasoning_rl.commands_doctor:run_doctor",
        "stepwell doctor",
        ("json",),
    ),
    "report": Verb(
        "look",
        "one page about runs: curves, intervals, levels, side by side, worst samples",
        "reasoning_rl.report_config:ReportConfig",
        "reasoning_rl.commands:run_report",
        "stepwell report outputs/seed0 outputs/seed1 --output-dir outputs/report",
    ),
    "metrics": Verb(
        "look",
        "RUN: its indicators with their courses and alerts; without: what every metric means",
        "reasoning_rl.commands_metrics:MetricsConfig",
        "reasoning_rl.commands_metrics:run_metrics",
        "stepwell metrics runs/ppo",
    ),
    "show": Verb(
        "evaluate",
        "step map of scored solutions, in the terminal or as a page",
        "reasoning_rl.step_map:ShowConfig",
        "reasoning_rl.commands:run_show",
        "stepwell show scored.jsonl --html map.html",
    ),
}

if __name__ == "__main__":
    main()
