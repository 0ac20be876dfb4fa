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
    """Where its settings class is, "module:Name" (without torch); imported when the verb's help or the verb
    itself asks."""
    run: str
    """Where the function of its arguments is, "module:function"."""
    example: str
    flags: tuple[str, ...] = ()
    """Names in FLAGS: options without a value that are no settings."""
    more: tuple[str, str] | None = None
    """A second list of options: its heading and its settings class."""
    names: tuple[str, ...] = ()
    """Where the names are that its first word may be, each "module:mapping"."""


EXIT_CODES = {
    0: "done",
    1: "a check failed (doctor: something needed is broken), or a fault of the program, with its traceback",
    2: "a mistake in what was asked for or given; one or two lines say what and how to mend it",
    130: "interrupted (Ctrl-C)",
    143: "told to stop (SIGTERM); a training run saved first",
}
"""Besides 75 of heartbeat.py: another process of the run is gone."""
DETERMINISTIC = "take kernels with a deterministic form only (slower on GPUs); a CPU repeats itself anyway"
GROUPS = ("start here", "train", "evaluate", "look")
GOES_ON = ("quickstart", "label", "eval", "search", "duel", "score")
"""Verbs that continue, when the same command is given again, where an interrupted one stopped."""
SHARED = ("sft", "prm", "rm", "dpo", "dpo-iter", "rft", "ppo")
"""Verbs that several processes of a launcher can share."""
FLAGS = {
    "fresh": "delete what an earlier run left in the output folder, and start anew",
    "json": "print one JSON object instead of a table",
    "list": "name what there is to choose from, and stop",
    "quiet": "no progress on the screen: warnings, alerts, errors and what came out are still printed",
    "resume": "continue from the newest checkpoint in the output folder",
}


def load(where: str) -> Any:
    """Import what "module:name" says."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; exits with one of EXIT_CODES."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        _dispatch(words)
    except UserError as error:
        sys.stderr.write(f"stepwell: {error}\n")
        sys.exit(2)
    except Stopped as stop:
        sys.stderr.write(f"stepwell: {stop}\n")
        sys.exit(143)  # 128 + SIGTERM, as a process that the signal ended
    except BrokenPipeError:  # stepwell ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # which rich turns into 1
            sys.exit(141)
        raise
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"stepwell: {error.filename}: {error.strerror}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(f"stepwell: interrupted{_how_to_go_on(words[0] if words else '')}\n")
        sys.exit(130)


def _how_to_go_on(name: str) -> str:
    if name in GOES_ON:
        return "; the same command continues where it stopped"
    resumable = name in VERBS and "resume" in VERBS[name].flags
    return "; --resume continues where it stopped" if resumable else ""


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        from reasoning_rl.cli_help import overview

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
        from reasoning_rl.cli_help import verb_help

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
    quiet = "--quiet" in rest and "quiet" in VERBS[name].flags
    if quiet:
        rest.remove("--quiet")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Idle OpenMP threads that spin cost a busy machine many times the work they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Said on standard output, between a command's results, wherever DeepSpeed is installed without a GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator" not in record.getMessage())
    warnings.formatwarning = _one_line
    before = os.environ.get("STEPWELL_QUIET", "")
    os.environ["STEPWELL_QUIET"] = "1" if quiet else before
    try:
        load(VERBS[name].run)(rest)
    finally:
        os.environ["STEPWELL_QUIET"] = before
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


VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        "start here",
        "the whole road on the built-in world: SFT, step labels, PRM, PPO-max, evaluation",
        "reasoning_rl.eval_config:QuickstartConfig",
        "reasoning_rl.commands:run_quickstart_command",
        "stepwell quickstart --seed 1 --output-dir outputs/seed1",
        ("fresh", "quiet"),
    ),
    "label": Verb(
        "train",
        "label the steps of solutions by rollouts: Monte Carlo, binary search, OmegaPRM",
        "reasoning_rl.eval_config:LabelRunConfig",
        "reasoning_rl.commands:run_label",
        "stepwell label arithmetic --model outputs/quickstart/sft/model --limit 20",
        ("quiet",),
        names=("eval.benchmarks:BENCHMARKS",),
    ),
    "sft": Verb(
        "train",
        "fine-tune a causal language model on prompt-response pairs",
        "reasoning_rl.train_config:SFTConfig",
        "reasoning_rl.commands:run_sft",
        "stepwell sft --model outputs/quickstart/sft/model --data demo/pairs.jsonl",
        ("resume", "quiet"),
    ),
    "prm": Verb(
        "train",
        "train a process reward model on step labels",
        "prm.config:PRMConfig",
        "reasoning_rl.commands:run_prm",
        "stepwell prm --model outputs/quickstart/sft/model --data demo/steps.jsonl",
        ("resume", "quiet"),
    ),
    "rm": Verb(
        "train",
        "train a pairwise reward model: one number for a whole response",
        "reasoning_rl.train_config:RMConfig",
        "reasoning_rl.commands_preference:run_rm",
        "stepwell rm --model outputs/quickstart/sft/model --data demo/preferences.jsonl",
        ("resume", "quiet"),
    ),
    "dpo": Verb(
        "train",
        "direct preference optimisation: a policy learns from pairs of responses",
        "reasoning_rl.train_config:DPOConfig",
        "reasoning_rl.commands_preference:run_dpo",
        "stepwell dpo --model outputs/quickstart/sft/model --data demo/preferences.jsonl",
        ("resume", "quiet"),
    ),
    "dpo-iter": Verb(
        "train",
        "iterative DPO: sample, score, pair, prefer; of responses or of single steps",
        "reasoning_rl.train_config:DPOIterConfig",
        "reasoning_rl.commands_preference:run_dpo_iter",
        "stepwell dpo-iter --policy outputs/quickstart/sft/model --rounds 2",
        ("resume", "quiet"),
    ),
    "rft": Verb(
        "train",
        "rejection sampling: fine-tune a policy on its own right answers",
        "reasoning_rl.train_config:RFTConfig",
        "reasoning_rl.commands_preference:run_rft",
        "stepwell rft --policy outputs/quickstart/sft/model --problems arithmetic",
        ("resume", "quiet"),
    ),
    "ppo": Verb(
        "train",
        "PPO-max with the PRM's scores as per-step rewards",
        "reasoning_rl.config:PPOConfig",
        "reasoning_rl.commands:run_ppo_command",
        "stepwell ppo --policy outputs/quickstart/sft/model --prm outputs/quickstart/prm/model "
        "--iterations 10",
        ("resume", "quiet"),
    ),
    "plan": Verb(
        "start here",
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
        "stepwell serve --model outputs/quickstart/sft/model --port 8000",
    ),
    "eval": Verb(
        "evaluate",
        "a benchmark: accuracy of a model or of samples, or what step scores find",
        "reasoning_rl.eval_config:EvalConfig",
        "reasoning_rl.commands:run_eval",
        "stepwell eval arithmetic --model outputs/quickstart/ppo/model --limit 100 --num-samples 4",
        ("list", "quiet"),
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
        "stepwell search arithmetic --model outputs/quickstart/sft/model --prm outputs/quickstart/prm/model "
        "--limit 100",
        ("quiet",),
        names=("eval.benchmarks:BENCHMARKS",),
    ),
    "duel": Verb(
        "evaluate",
        "win, tie, lose between two policies: by a reward model, a judge, or the answer",
        "reasoning_rl.duel:DuelConfig",
        "reasoning_rl.commands_preference:run_duel_command",
        "stepwell duel outputs/quickstart/ppo/model outputs/quickstart/sft/model --limit 100",
        ("quiet",),
    ),
    "compare": Verb(
        "evaluate",
        "two evaluations problem by problem: difference, interval, what flipped",
        "reasoning_rl.eval_config:CompareConfig",
        "reasoning_rl.commands:run_compare",
        "stepwell compare outputs/quickstart/eval_sft/hard_greedy outputs/quickstart/eval_ppo/hard_greedy",
    ),
    "data": Verb(
        "look",
        "inspect FILE: step labels, problems that benchmarks share; demo FOLDER: example files",
        "reasoning_rl.eval_config:InspectConfig",
        "reasoning_rl.commands_data:run_data",
        "stepwell data inspect outputs/quickstart/label/train.jsonl --examples 2",
    ),
    "score": Verb(
        "evaluate",
        "score every step of solutions with any published process reward model",
        "reasoning_rl.eval_config:ScoreConfig",
        "reasoning_rl.commands:run_score",
        "stepwell score --prm outputs/quickstart/prm/model --input demo/steps.jsonl --output scored.jsonl",
        ("list", "quiet"),
    ),
    "doctor": Verb(
        "start here",
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
        "stepwell report outputs/quickstart/ppo --output-dir outputs/report",
    ),
    "metrics": Verb(
        "look",
        "RUN: its indicators with their courses and alerts; without: what every metric means",
        "reasoning_rl.commands_metrics:MetricsConfig",
        "reasoning_rl.commands_metrics:run_metrics",
        "stepwell metrics outputs/quickstart/ppo",
    ),
    "show": Verb(
        "look",
        "step map of scored solutions, in the terminal or as a page",
        "reasoning_rl.step_map:ShowConfig",
        "reasoning_rl.commands:run_show",
        "stepwell show scored.jsonl --html map.html",
    ),
    "init": Verb(
        "start here",
        "a commented config for a task and a model size, with the command that runs it",
        "reasoning_rl.init_config:InitConfig",
        "reasoning_rl.commands_init:run_init",
        "stepwell init ppo --model-size 7b --gpus 8 --output ppo.yaml",
        names=("reasoning_rl.init_tasks:TASKS",),
    ),
    "completion": Verb(
        "start here",
        "a script that completes commands, options and their values in bash, zsh or fish",
        "reasoning_rl.completion:CompletionConfig",
        "reasoning_rl.completion:run_completion",
        "stepwell completion bash > ~/.stepwell.bash && echo '. ~/.stepwell.bash' >> ~/.bashrc",
        names=("reasoning_rl.completion:SCRIPTS",),
    ),
}

if __name__ == "__main__":
    main()
