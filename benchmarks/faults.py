"""Fault drills: break a PPO run in every way it can break, resume it, compare with the run that nothing hit.

    python benchmarks/faults.py --kills 20 --output-dir outputs/faults

Prints faults injected, survived, and samples lost or taken twice (must be 0): a run has survived when its
metrics.jsonl and its final weights have the bytes of the uninterrupted run. Models are tiny and made here.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from cli_cases import ENVIRONMENT, ppo_settings, save_models, write_yaml

ITERATIONS = 12
EXIT_STOPPED = 143


@dataclass
class Drill:
    """What one kind of fault did."""

    name: str
    injected: int = 0
    survived: int = 0
    samples_lost: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """Where the runs are, and the run that nothing hits."""

    root: Path
    config: str
    whole: Path

    def start(self, run: Path, *flags: str, limit: int | None = None) -> subprocess.Popen[str]:
        """Start a run of the command line; limit: bytes that no file may outgrow, as on a full disk."""
        command = [sys.executable, "-m", "reasoning_rl.cli", "ppo", "--config", self.config]

        def narrow() -> None:
            if limit is not None:
                # Ignored, so that a write beyond the limit fails with an error instead of ending the process.
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.Popen(
            [*command, "--output-dir", str(run), *flags],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=narrow,
        )

    def finish(self, run: Path, *flags: str) -> tuple[int, str]:
        process = self.start(run, *flags)
        text = process.communicate()[0]
        return process.returncode, text

    def settle(self, drill: Drill, run: Path) -> None:
        """Resume what a fault left until it ends, and compare with the whole run."""
        code, text = self.finish(run, "--resume")
        lost = samples_lost(self.whole, run)
        drill.samples_lost += lost
        if code == 0 and lost == 0 and same_bytes(self.whole, run):
            drill.survived += 1
        else:
            drill.notes.append(f"exit {code}, {lost} samples: {text.strip().splitlines()[-1:]}")


def records(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".*.tmp/*"))


def same_bytes(one: Path, other: Path) -> bool:
    names = ("metrics.jsonl", "model/model.safetensors")
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names if (one / n).exists())


def samples_lost(whole: Path, run: Path) -> int:
    """Iterations that stand in one record and not in the other, or twice, times the samples of each."""
    settings = json.loads((whole / "samples.json").read_text())
    first, second = ([row["iteration"] for row in rows(path)] for path in (whole, run))
    missing = [i for i in first if second.count(i) != 1] + [i for i in second if i not in first]
    return len(missing) * settings["per_iteration"]


def rows(run: Path) -> Iterator[dict[str, float]]:
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def kills(bench: Bench, count: int, seed: int) -> Drill:
    """SIGKILL at random moments of one run, every fourth of them in the middle of saving."""
    drill, randomness = Drill("SIGKILL at a random moment"), random.Random(seed)
    run = bench.root / "killed"
    due = sorted(randomness.uniform(0, ITERATIONS) for _ in range(count))
    for number, moment in enumerate(due):
        process = bench.start(run, *(["--resume"] if number else []))
        while process.poll() is None:
            reached = records(run) >= int(moment)
            if reached and (number % 4 or is_saving(run)):
                time.sleep(randomness.uniform(0, 0.2) if number % 4 else 0.0)
                process.kill()
                drill.injected += 1
                break
            time.sleep(0.001)
        process.communicate()
        if process.returncode == 0:  # it ended before its moment came: the next kills hit a finished run
            break
    before = drill.injected
    bench.settle(drill, run)
    drill.survived = before if drill.survived else 0
    return drill


def terminations(bench: Bench, count: int) -> Drill:
    """SIGTERM in the middle of an iteration: the run saves, and ends with 143."""
    drill = Drill("SIGTERM")
    run = bench.root / "terminated"
    for number in range(count):
        process = bench.start(run, *(["--resume"] if number else []))
        wait_for(process, lambda target=2 * number + 2: records(run) >= target)
        process.send_signal(signal.SIGTERM)
        text = process.communicate()[0]
        drill.injected += 1
        if process.returncode == EXIT_STOPPED:
            drill.survived += 1
        else:
            drill.notes.append(f"exit {process.returncode}: {text.strip().splitlines()[-1:]}")
    clean = Drill("")
    bench.settle(clean, run)
    drill.samples_lost, drill.notes = clean.samples_lost, drill.notes + clean.notes
    if not clean.survived:
        drill.survived = 0
    return drill


def full_disk(bench: Bench) -> Drill:
    """No file may outgrow 20 KB while a run goes on: a clear error, and what was saved stays good."""
    drill = Drill("disk full while saving")
    run = bench.root / "full"
    process = bench.start(run)
    wait_for(process, lambda: records(run) >= 4)
    process.kill()
    process.communicate()
    refused = bench.start(run, "--resume", limit=20_000)
    text = refused.communicate()[0]
    drill.injected += 1
    if refused.returncode != 2 or "cannot" not in text or "Traceback" in text:
        drill.notes.append(f"exit {refused.returncode}: {text.strip().splitlines()[-1:]}")
    bench.settle(drill, run)
    return drill


def damages(bench: Bench) -> Drill:
    """The newest checkpoint is damaged: the one before is taken, and the run says so."""
    drill = Drill("damaged newest checkpoint")
    for how in ("a byte flipped", "cut short", "no manifest"):
        run = bench.root / f"damaged {how}"
        process = bench.start(run)
        wait_for(process, lambda run=run: records(run) >= 6)
        process.kill()
        process.communicate()
        newest = sorted(p for p in (run / "checkpoints").iterdir() if p.name.isdigit())[-1]
        damage(newest, how)
        drill.injected += 1
        code, text = bench.finish(run, "--resume")
        said = "damaged checkpoint passed over" in text
        if code == 0 and said and same_bytes(bench.whole, run) and not samples_lost(bench.whole, run):
            drill.survived += 1
        else:
            drill.notes.append(f"{how}: exit {code}, said so: {said}")
            drill.samples_lost += samples_lost(bench.whole, run)
    return drill


def damage(folder: Path, how: str) -> None:
    path = folder / "policy.pt"
    content = bytearray(path.read_bytes())
    if how == "a byte flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "cut short":
        path.write_bytes(content[:-10])
    else:
        (folder / "manifest.json").unlink()


def torn_records(bench: Bench) -> Drill:
    """A power cut tears the last record and leaves an unfinished checkpoint lying about."""
    drill = Drill("torn record and unfinished checkpoint")
    run = bench.root / "torn"
    process = bench.start(run)
    wait_for(process, lambda: records(run) >= 5)
    process.kill()
    process.communicate()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"iteration": 11, "cri')
    shutil.copytree(sorted((run / "checkpoints").iterdir())[-1], run / "checkpoints" / ".00000099.tmp")
    drill.injected += 1
    bench.settle(drill, run)
    return drill


def wait_for(process: subprocess.Popen[str], due: Callable[[], bool]) -> None:
    while not due():
        if process.poll() is not None:
            raise SystemExit(f"a run ended before its fault: {process.communicate()[0]}")
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terminations", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/faults"))
    options = parser.parse_args()
    shutil.rmtree(options.output_dir, ignore_errors=True)
    options.output_dir.mkdir(parents=True)
    models = save_models(options.output_dir / "models")
    settings = ppo_settings(models, options.output_dir / "unused", iterations=ITERATIONS)
    config = write_yaml(options.output_dir / "ppo.yaml", settings)
    bench = Bench(options.output_dir, config, options.output_dir / "whole")
    started = time.perf_counter()
    code, text = bench.finish(bench.whole)
    if code:
        raise SystemExit(text)
    rollout = settings["rollout"]
    per_iteration = rollout["problems_per_iteration"] * rollout["samples_per_problem"]
    (bench.whole / "samples.json").write_text(json.dumps({"per_iteration": per_iteration}))
    print(f"uninterrupted: {ITERATIONS} iterations, {time.perf_counter() - started:.0f} s", flush=True)
    drills = []
    for drill in (
        lambda: kills(bench, options.kills, options.seed),
        lambda: terminations(bench, options.terminations),
        lambda: full_disk(bench),
        lambda: damages(bench),
        lambda: torn_records(bench),
    ):
        drills.append(drill())
        done = drills[-1]
        print(
            f"{done.name:<40} injected {done.injected:>3}  survived {done.survived:>3}  "
            f"samples lost {done.samples_lost}",
            flush=True,
        )
        for note in done.notes:
            print(f"    {note}", flush=True)
    injected, survived = sum(d.injected for d in drills), sum(d.survived for d in drills)
    lost = sum(d.samples_lost for d in drills)
    print(f"faults injected {injected}, survived {survived}, samples lost {lost}")
    os._exit(0 if injected == survived and lost == 0 else 1)


if __name__ == "__main__":
    main()
