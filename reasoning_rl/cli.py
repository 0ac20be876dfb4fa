"""The `stepwell` command. Heavy imports wait until a verb runs, so that help appears at once.

A user's mistake (UserError, or a file the system refuses) prints its one or two lines and exits with code 2,
without a traceback.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from data.settings import Settings


@dataclass(frozen=True)
class Verb:
    """One subcommand."""

    group: str
    purpose: str
    settings: Callable[[], "type[Settings]"]
    run: Callable[[list[str]], None]
    example: str
    more: tuple[str, Callable[[], "type[Settings]"]] | None = None
    """A second list of options, with its heading."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, with 2 for a user's mistake, with 130 when interrupted."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        _dispatch(words)
    except UserError as error:
        sys.stderr.write(f"stepwell: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"stepwell: {error.filename}: {error.strerror}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        again = "--resume continues" if words[:1] and words[0] in RESUMABLE else "the same command continues"
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
        sys.stdout.write(verb_help(name))
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Idle OpenMP threads that spin cost a busy machine many times the work they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    VERBS[name].run(rest)


def overview() -> str:
    """The text of `stepwell --help`."""
    lines = ["usage: stepwell COMMAND [--config FILE.yaml] [--option value ...]", ""]
    for group in dict.fromkeys(verb.group for verb in VERBS.values()):
        lines.append(group)
        lines += [f"  {name:<11} {verb.purpose}" for name, verb in VERBS.items() if verb.group == group]
        lines.append("")
    lines.append("stepwell COMMAND --help lists a command's options with their defaults and an example.")
    return "\n".join(lines) + "\n"


def verb_help(name: str) -> str:
    """The text of `stepwell NAME --help`."""
    import textwrap

    from reasoning_rl.options import describe

    verb = VERBS[name]
    lines = [f"stepwell {name}: {verb.purpose}", "", f"example:  {verb.example}", "", "options"]
    lines += [
        "  --config FILE",
        "      YAML file of the options below; options on the command line win over it",
    ]
    if name == "quickstart":
        lines += ["  --fresh", "      delete what an earlier run left in the output folder, and start anew"]
    if name in LISTING:
        lines += ["  --list", "      name what there is to choose from, and stop"]
    if name in RESUMABLE:
        lines += ["  --resume", "      continue from the newest checkpoint in the output folder"]
    lists = [describe(verb.settings())]
    if verb.more:
        lists.append(describe(verb.more[1]()))
    for number, options in enumerate(lists):
        if number:
            lines += ["", verb.more[0] if verb.more else ""]
        for option, text in options:
            lines.append(f"  {option}")
            lines += textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def _sft_settings() -> "type[Settings]":
    from reasoning_rl.sft import SFTConfig

    return SFTConfig


def _prm_settings() -> "type[Settings]":
    from prm.train import PRMConfig

    return PRMConfig


def _ppo_settings() -> "type[Settings]":
    from reasoning_rl.config import PPOConfig

    return PPOConfig


def _eval_settings() -> "type[Settings]":
    from reasoning_rl.config import EvalConfig

    return EvalConfig


def _search_settings() -> "type[Settings]":
    from reasoning_rl.search_config import SearchConfig

    return SearchConfig


def _compare_settings() -> "type[Settings]":
    from reasoning_rl.config import CompareConfig

    return CompareConfig


def _prm_eval_settings() -> "type[Settings]":
    from reasoning_rl.config import PRMEvalConfig

    return PRMEvalConfig


def _inspect_settings() -> "type[Settings]":
    from reasoning_rl.config import InspectConfig

    return InspectConfig


def _score_settings() -> "type[Settings]":
    from reasoning_rl.scoring import ScoreConfig

    return ScoreConfig


def _show_settings() -> "type[Settings]":
    from reasoning_rl.step_map import ShowConfig

    return ShowConfig


def _label_settings() -> "type[Settings]":
    from prm.labelling.settings import LabelConfig

    return LabelConfig


def _report_settings() -> "type[Settings]":
    from reasoning_rl.report_config import ReportConfig

    return ReportConfig


def _quickstart_settings() -> "type[Settings]":
    from reasoning_rl.config import QuickstartConfig

    return QuickstartConfig


def _sft(args: list[str]) -> None:
    from reasoning_rl.commands import run_sft

    run_sft(args)


def _prm(args: list[str]) -> None:
    from reasoning_rl.commands import run_prm

    run_prm(args)


def _ppo(args: list[str]) -> None:
    from reasoning_rl.commands import run_ppo_command

    run_ppo_command(args)


def _eval(args: list[str]) -> None:
    from reasoning_rl.commands import run_eval

    run_eval(args)


def _search(args: list[str]) -> None:
    from reasoning_rl.commands import run_search

    run_search(args)


def _data(args: list[str]) -> None:
    from reasoning_rl.commands import run_data

    run_data(args)


def _score(args: list[str]) -> None:
    from reasoning_rl.commands import run_score

    run_score(args)


def _show(args: list[str]) -> None:
    from reasoning_rl.commands import run_show

    run_show(args)


def _label(args: list[str]) -> None:
    from reasoning_rl.commands import run_label

    run_label(args)


def _report(args: list[str]) -> None:
    from reasoning_rl.commands import run_report

    run_report(args)


def _compare(args: list[str]) -> None:
    from reasoning_rl.commands import run_compare

    run_compare(args)


def _quickstart(args: list[str]) -> None:
    from reasoning_rl.commands import run_quickstart_command

    run_quickstart_command(args)


LISTING = ("eval", "score")
RESUMABLE = ("sft", "prm", "ppo")

VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        "start here",
        "the whole road on the built-in world: SFT, step labels, PRM, PPO-max, evaluation",
        _quickstart_settings,
        _quickstart,
        "stepwell quickstart --seed 1",
    ),
    "label": Verb(
        "train",
        "label the steps of solutions by rollouts: Monte Carlo, binary search, OmegaPRM",
        _label_settings,
        _label,
        "stepwell label gsm8k --model runs/sft/model --k 8 --output-dir runs/label",
    ),
    "sft": Verb(
        "train",
        "fine-tune a causal language model on prompt-response pairs",
        _sft_settings,
        _sft,
        "stepwell sft --model Qwen/Qwen2.5-0.5B --data pairs.jsonl --output-dir runs/sft",
    ),
    "prm": Verb(
        "train",
        "train a process reward model on step labels",
        _prm_settings,
        _prm,
        "stepwell prm --model Qwen/Qwen2.5-Math-1.5B --data steps.jsonl --output-dir runs/prm",
    ),
    "ppo": Verb(
        "train",
        "PPO-max with the PRM's scores as per-step rewards",
        _ppo_settings,
        _ppo,
        "stepwell ppo --config configs/quickstart.yaml --kl.coef 0.05",
    ),
    "eval": Verb(
        "evaluate",
        "a benchmark: accuracy of a model or of samples, or what step scores find",
        _eval_settings,
        _eval,
        "stepwell eval gsm8k --model runs/sft/model --limit 100 --num-samples 4",
        more=("options of the step benchmarks (stepwell eval processbench --prm PATH)", _prm_eval_settings),
    ),
    "search": Verb(
        "evaluate",
        "best of N, votes, beam search or DVTS: a reward model's scores choose and steer",
        _search_settings,
        _search,
        "stepwell search gsm8k --model runs/sft/model --prm runs/prm/model --method beam --n 16",
    ),
    "compare": Verb(
        "evaluate",
        "two evaluations problem by problem: difference, interval, what flipped",
        _compare_settings,
        _compare,
        "stepwell compare outputs/base/gsm8k outputs/tuned/gsm8k",
    ),
    "data": Verb(
        "look",
        "inspect FILE: the step labels it holds, the benchmarks that share its problems",
        _inspect_settings,
        _data,
        "stepwell data inspect steps.jsonl --against processbench/ math500.jsonl",
    ),
    "score": Verb(
        "evaluate",
        "score every step of solutions with any published process reward model",
        _score_settings,
        _score,
        "stepwell score --prm Qwen/Qwen2.5-Math-PRM-7B --input solutions.jsonl --output scored.jsonl",
    ),
    "report": Verb(
        "look",
        "one page about runs: curves, intervals, levels, side by side, worst samples",
        _report_settings,
        _report,
        "stepwell report outputs/seed0 outputs/seed1 --output-dir outputs/report",
    ),
    "show": Verb(
        "evaluate",
        "step map of scored solutions, in the terminal or as a page",
        _show_settings,
        _show,
        "stepwell show scored.jsonl --html map.html",
    ),
}

if __name__ == "__main__":
    main()
