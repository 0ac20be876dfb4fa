"""What each verb of the command line does: read settings, build, run under a live view, say what came out."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from data.errors import UserError, did_you_mean
from data.protocols import MetricLog
from prm.tracking import Trackers, require_trackers
from reasoning_rl.compose import evaluate_benchmark, train_ppo
from reasoning_rl.config import PPOConfig
from reasoning_rl.eval_config import (
    PRM_BENCHMARKS,
    EvalConfig,
    PRMEvalConfig,
    QuickstartConfig,
)
from reasoning_rl.heartbeat import watched
from reasoning_rl.live import Live, grid_text, table_text
from reasoning_rl.options import parse
from reasoning_rl.prm_eval import evaluate_prm
from reasoning_rl.resumed import warn_of_changes
from reasoning_rl.runtime import make_accelerator
from reasoning_rl.telemetry import RunLog, read_metrics

TERMINAL_LIMIT = 10
"""Step maps shown in the terminal unless told otherwise."""
FIT_SHOWN = {"train/loss": "loss", "train/lr": "lr", "time/train_tokens_per_second": "tokens/s"}
PPO_SHOWN = {
    "reward/outcome": "outcome",
    "reward/response": "reward",
    "reward/step_score": "score",
    "policy/kl_per_response": "kl",
    "valid/greedy": "greedy",
    "valid/sampled": "sampled",
}


class QuietLog:
    """The MetricLog of the processes that do not write."""

    def __call__(self, iteration: int, metrics: Mapping[str, float]) -> None:
        return

    def rewind(self, iteration: int) -> None:
        return


def run_sft(args: list[str]) -> None:
    """`stepwell sft`."""
    from reasoning_rl.sft import SFTConfig, train_sft

    run_training(args, "sft", SFTConfig, train_sft, shown=FIT_SHOWN, made="trained model")


def run_prm(args: list[str]) -> None:
    """`stepwell prm`."""
    from eval.metrics import solution_metrics
    from prm.train import PRMConfig, train_prm

    run_training(
        args,
        "prm",
        PRMConfig,
        partial(train_prm, step_metrics=solution_metrics),
        shown={**FIT_SHOWN, "valid/step_auc": "auc", "valid/first_error_f1": "f1"},
        held_out=lambda config: ("held-out steps", f"threshold {config.threshold}"),
        made="trained process reward model",
    )


def run_ppo_command(args: list[str]) -> None:
    """`stepwell ppo` and scripts/ppo_prm.py."""
    run_training(
        args,
        "ppo",
        PPOConfig,
        train_ppo,
        shown=PPO_SHOWN,
        total=attrgetter("iterations"),
        held_out=held_out_problems,
    )


def held_out_problems(config: Any) -> tuple[str, str]:
    """Heading of the last validation of a policy."""
    return "held-out problems", str(config.num_validation)


def run_training(
    args: list[str],
    title: str,
    settings: type[Any],
    train: Callable[..., Path],
    *,
    shown: Mapping[str, str],
    made: str = "trained policy",
    total: Callable[[Any], int] | None = None,
    held_out: Callable[[Any], tuple[str, str]] | None = None,
) -> None:
    """One training verb: read its settings, train under a live view, say where the model is.

    shown: metric -> its name in the view. total: iterations of a run whose log does not say so itself.
    held_out: the heading of the table of the last validation.
    """
    parsed = parse(args, settings, flags=["resume"])
    read = getattr(settings, "from_preset", settings.from_dict)
    config = read(parsed.values, parsed.where)
    require_trackers(config.tracking)
    accelerator = make_accelerator()
    resume = "resume" in parsed.flags
    count = total(config) if total is not None else None
    unit = "iteration" if title == "ppo" else "round" if count else "update"
    live = Live(title, count, shown=shown, board=title == "ppo", unit=unit)
    with run_log(accelerator, config, resume=resume, live=live) as log:
        folder = train(config, accelerator=accelerator, log=log, resume=resume)
    if held_out is not None and accelerator.is_main_process:
        validated = [
            [
                (k.removeprefix("valid/"), v)
                for k, v in row.items()
                if k.startswith("valid/") and v is not None
            ]
            for row in read_metrics(config.output_dir)
        ]
        for last in [found for found in validated if found][-1:]:
            _say(accelerator, table_text([held_out(config), *((k, f"{v:.4g}") for k, v in last)]))
    _say(accelerator, f"{made}: {folder}")


def run_eval(args: list[str]) -> None:
    """`stepwell eval BENCHMARK`."""
    from eval.benchmarks import BENCHMARKS, get_benchmark
    from eval.prm_benchmarks import PRM_BENCHMARKS as STEP_BENCHMARKS

    if "--list" in args:
        listed: dict[str, Any] = {**BENCHMARKS, **STEP_BENCHMARKS}
        for name, benchmark in listed.items():
            Console().print(f"  {name:<16} {benchmark.description}", soft_wrap=True)
        return
    words = {word.partition("=")[0] for word in args}
    if words & {"--prm", "--scores", *PRM_BENCHMARKS}:
        run_prm_eval(args)
        return
    parsed = parse(args, EvalConfig, positional=1, flags=["allow_unsandboxed"])
    if "allow_unsandboxed" in parsed.flags:
        parsed.values["allow_unsandboxed"] = True
    if not parsed.positional:
        known = ", ".join([*BENCHMARKS, *PRM_BENCHMARKS])
        raise UserError(f"which benchmark? stepwell eval NAME; known: {known}")
    name = parsed.positional[0]
    get_benchmark(name)
    config = EvalConfig.from_dict(parsed.values, parsed.where)
    with Live(f"eval {name}", None, unit="sample") as live:
        result = evaluate_benchmark(name, config, device=make_accelerator().device, on_progress=live.follow)
    Console().print(table_text(result.rows()), highlight=False)
    _say_plainly(f"every sample with its verdict: {Path(config.output_dir) / name / 'samples.jsonl'}")


def run_search(args: list[str]) -> None:
    """`stepwell search BENCHMARK`."""
    from eval.benchmarks import BENCHMARKS, get_benchmark
    from reasoning_rl.compose_search import search_benchmark
    from reasoning_rl.search_config import SearchConfig

    parsed = parse(args, SearchConfig, positional=1, flags=["allow_unsandboxed"])
    if "allow_unsandboxed" in parsed.flags:
        parsed.values["allow_unsandboxed"] = True
    if not parsed.positional:
        raise UserError(f"which benchmark? stepwell search NAME; known: {', '.join(BENCHMARKS)}")
    name = parsed.positional[0]
    get_benchmark(name)
    config = SearchConfig.from_dict(parsed.values, parsed.where)
    with Live(f"search {name}", None, unit="problem") as live:
        device = make_accelerator().device
        result, folder = search_benchmark(name, config, device=device, on_progress=live.follow)
    Console().print(table_text(result.rows()), highlight=False)
    _say_plainly(f"every candidate with its step scores: {folder / 'search.jsonl'}")


def run_compare(args: list[str]) -> None:
    """`stepwell compare A B`."""
    from eval.compare import compare_runs
    from reasoning_rl.eval_config import CompareConfig

    parsed = parse(args, CompareConfig, positional=2)
    config = CompareConfig.from_dict(parsed.values, parsed.where)
    if len(parsed.positional) < 2:
        raise UserError("which runs? stepwell compare FOLDER FOLDER; each holds a samples.jsonl")
    comparison = compare_runs(*parsed.positional)
    _say_plainly(table_text(comparison.rows()))
    shown = list(comparison.flipped.items())[: config.flips]
    if shown:
        _say_plainly(
            grid_text([("problem", "first", "second"), *((k, f"{a:.2f}", f"{b:.2f}") for k, (a, b) in shown)])
        )
    if len(shown) < len(comparison.flipped):
        _say_plainly(f"{len(shown)} of {len(comparison.flipped)} problems that flipped; --flips shows more")


def run_prm_eval(args: list[str]) -> None:
    """`stepwell eval BENCHMARK` of step scores."""
    parsed = parse(args, PRMEvalConfig, positional=1)
    if not parsed.positional:
        raise UserError(f"which benchmark? stepwell eval NAME; known: {', '.join(PRM_BENCHMARKS)}")
    name = parsed.positional[0]
    if name not in PRM_BENCHMARKS:
        raise UserError(f"benchmark '{name}' of step scores is unknown{did_you_mean(name, PRM_BENCHMARKS)}")
    config = PRMEvalConfig.from_dict(parsed.values, parsed.where)
    with Live(f"eval {name}", None, unit="solution") as live:
        device = make_accelerator().device if config.prm else "cpu"
        result, page = evaluate_prm(name, config, device=device, on_progress=live.follow)
    for table in result.tables:
        _say_plainly(f"{table.title}\n{grid_text(table.shown())}")
    for note in result.notes:
        _say_plainly(f"note: {note}")
    _say_plainly(f"tables and pictures: {page}")


def run_score(args: list[str]) -> None:
    """`stepwell score`."""
    from prm.formats import FORMATS
    from reasoning_rl.scoring import ScoreConfig, score_solutions

    if "--list" in args:
        for name, spec in FORMATS.items():
            Console().print(f"  {name:<26} {', '.join(spec.models)}", highlight=False)
        return
    parsed = parse(args, ScoreConfig)
    config = ScoreConfig.from_dict(parsed.values, parsed.where)
    with Live("score", None, unit="solution") as live:
        summary = score_solutions(config, device=make_accelerator().device, on_progress=live.follow)
    Console().print(table_text(summary.rows()), highlight=False)
    text = f"scored: {config.output} (see it: stepwell show {config.output})"
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def run_show(args: list[str]) -> None:
    """`stepwell show FILE`."""
    from data.files import write_atomically
    from reasoning_rl.step_map import ShowConfig, choose, read_scored, terminal_map
    from reasoning_rl.step_map_html import page

    parsed = parse(args, ShowConfig, positional=1)
    config = ShowConfig.from_dict(parsed.values, parsed.where)
    if not parsed.positional:
        raise UserError("which file? stepwell show scored.jsonl; `stepwell score` writes one")
    path = parsed.positional[0]
    solutions = read_scored(path, threshold=config.threshold)
    if config.html is not None:
        chosen = choose(solutions, name=config.id, limit=config.limit)
        write_atomically(config.html, page(chosen, Path(path).name))
        count = "1 solution" if len(chosen) == 1 else f"{len(chosen)} solutions"
        Console().print(f"{count}: {config.html}", highlight=False, markup=False)
        return
    chosen = choose(solutions, name=config.id, limit=config.limit or TERMINAL_LIMIT)
    console = Console()
    for solution in chosen:
        console.print(terminal_map(solution))
    if len(chosen) < len(solutions) and config.id is None:
        console.print(f"{len(chosen)} of {len(solutions)} solutions; --limit shows more", highlight=False)


def run_label(args: list[str]) -> None:
    """`stepwell label BENCHMARK`."""
    from eval.benchmarks import BENCHMARKS, get_benchmark
    from prm.labelling.run import summarise
    from reasoning_rl.eval_config import LabelRunConfig
    from reasoning_rl.labelling import label_benchmark

    parsed = parse(args, LabelRunConfig, positional=1)
    if not parsed.positional:
        raise UserError(
            f"label solutions of which benchmark? stepwell label NAME; known: {', '.join(BENCHMARKS)}"
        )
    name = parsed.positional[0]
    get_benchmark(name)
    config = LabelRunConfig.from_dict(parsed.values, parsed.where)
    with Live(f"label {name}", None, unit="problem") as live:
        labelled, num_problems = label_benchmark(
            name, config, device=make_accelerator().device, on_progress=live.follow
        )
    summary = summarise(labelled, num_problems)
    rows = [
        ("problems", f"{num_problems}"),
        ("solutions", f"{summary['solutions']}, {summary['solutions_with_error']} with an error"),
        ("step labels", f"{summary['labels']}, mean {summary['mean_label']:.3f}"),
        ("rollouts", f"{labelled.cost.rollouts}, {summary['rollouts_per_label']:.2f} a label"),
        ("tokens", f"{labelled.cost.tokens}"),
        *((name.replace("_", " "), str(count)) for name, count in labelled.counts.items() if count),
    ]
    Console().print(table_text(rows), highlight=False)
    _say_plainly(f"labels: {Path(config.output_dir) / 'labels.jsonl'}")


def run_report(args: list[str]) -> None:
    """`stepwell report RUN [RUN ...]`."""
    from reasoning_rl.compose_report import report_runs
    from reasoning_rl.report_config import ReportConfig

    parsed = parse(args, ReportConfig, positional=len(args))
    if not parsed.positional:
        raise UserError("which run? stepwell report RUN [RUN ...], folders that stepwell wrote")
    config = ReportConfig.from_dict(parsed.values, parsed.where)
    page = report_runs(parsed.positional, config, device=make_accelerator().device)
    _say_plainly(f"report: {page}")


def run_quickstart_command(args: list[str]) -> None:
    """`stepwell quickstart`."""
    from reasoning_rl.quickstart import run_quickstart

    parsed = parse(args, QuickstartConfig, flags=["fresh"])
    config = QuickstartConfig.from_dict(parsed.values, parsed.where)
    run_quickstart(config, fresh="fresh" in parsed.flags)


@contextmanager
def run_log(
    accelerator: Accelerator, config: Any, *, resume: bool, live: Live | None = None
) -> Iterator[MetricLog]:
    """The log of one training run, whose settings it keeps in config.yaml: metrics in the output folder, its
    trackers and a live view on the main process, nothing on the others.

    Raises UserError for a tracker that is not installed.
    """
    require_trackers(config.tracking)
    if not accelerator.is_main_process:
        with watched(accelerator):
            yield QuietLog()
        return
    if resume:
        warn_of_changes(config)
    is_recorded = False

    def watch(iteration: int, metrics: Mapping[str, float]) -> None:
        nonlocal is_recorded
        if not is_recorded:
            # Not sooner: settings that are refused must not replace those of the run in the folder.
            config.to_yaml(Path(config.output_dir) / "config.yaml")
            is_recorded = True
        if live is not None:
            live.watch(iteration, metrics)

    with ExitStack() as stack:
        settings = config.model_dump(mode="json")
        trackers = stack.enter_context(Trackers(config.tracking, config.output_dir, settings, resume=resume))
        if live is not None:
            stack.enter_context(live)
        stack.enter_context(watched(accelerator))
        yield RunLog(config.output_dir, watch=watch, trackers=trackers)
    if resume and not is_recorded:
        warnings.warn(f"{config.output_dir}: this run was finished before: nothing was trained", stacklevel=1)


def _say_plainly(text: str) -> None:
    """Print text that may hold brackets and wide tables: no markup, no line breaks of rich's own."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _say(accelerator: Accelerator, text: str) -> None:
    if accelerator.is_main_process:
        _say_plainly(text)
