"""`stepwell data`: a look into a file, and small files of the built-in world to try every command on."""

import json
from pathlib import Path
from random import Random

from data.arithmetic import Habits, demonstrate, label_solution, make_problems
from data.errors import UserError
from data.files import write_atomically
from data.step_readers import write_steps
from reasoning_rl.commands import _say_plainly
from reasoning_rl.eval_config import InspectConfig
from reasoning_rl.options import parse, several_values

DEMO_SEED = 2_000_003
NUM_DEMO = 256


def run_data(args: list[str]) -> None:
    """`stepwell data inspect FILE`, `stepwell data demo FOLDER`."""
    from data.inspect import inspect_steps
    from reasoning_rl.inspection_text import inspection_text

    parsed = parse(several_values(args, "--against"), InspectConfig, positional=2)
    if parsed.positional[:1] == ["demo"]:
        if len(parsed.positional) < 2:
            raise UserError("where to? stepwell data demo FOLDER")
        for path, what in write_demo(Path(parsed.positional[1])):
            _say_plainly(f"{path}: {what}")
        return
    if parsed.positional[:1] != ["inspect"]:
        raise UserError("what about the data? stepwell data inspect FILE, or stepwell data demo FOLDER")
    if len(parsed.positional) < 2:
        raise UserError("which file? stepwell data inspect FILE [--against FILE ...]")
    config = InspectConfig.from_dict(parsed.values, parsed.where)
    report = inspect_steps(
        parsed.positional[1],
        config.format,
        neutral=config.neutral,
        split=config.split,
        against=config.against,
        num_examples=config.examples,
    )
    _say_plainly(inspection_text(report))


def write_demo(folder: Path) -> list[tuple[Path, str]]:
    """Write pairs, preferences and step labels of the arithmetic world; return each file and what it is.

    Raises UserError where one of the files exists.
    """
    from reasoning_rl.world import demonstrations, labelled_corruptions, prompt

    careless = Habits(confusion=1.0, slip=0.5)
    rng = Random(DEMO_SEED)
    preferences = []
    for problem in make_problems(2 * NUM_DEMO, DEMO_SEED, split="train"):
        wrong = demonstrate(problem, rng, careless)
        if 0 in label_solution(problem, wrong).labels:
            preferences.append(
                {"prompt": prompt(problem.text), "chosen": problem.solution, "rejected": wrong}
            )
    pairs = [
        {"prompt": ask, "response": answer}
        for ask, answer in demonstrations(NUM_DEMO, DEMO_SEED, Habits(confusion=0.0, slip=0.0))
    ]
    files = {
        "pairs.jsonl": "prompts with responses, for sft",
        "preferences.jsonl": "prompts with a right and a wrong response, for dpo and rm",
        "steps.jsonl": "solutions with a label for each step, for prm, score and data inspect",
    }
    for name in files:
        if (folder / name).exists():
            raise UserError(f"{folder / name}: exists and is not overwritten; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pairs.jsonl", pairs), ("preferences.jsonl", preferences[:NUM_DEMO])):
        write_atomically(folder / name, "".join(json.dumps(row) + "\n" for row in rows))
    write_steps(folder / "steps.jsonl", labelled_corruptions(NUM_DEMO, DEMO_SEED))
    return [(folder / name, what) for name, what in files.items()]
