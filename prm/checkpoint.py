"""Checkpoints that are whole or absent, and model folders that other tools open.

A checkpoint is run_dir/checkpoints/00000123/: one file per part (its state_dict, loaded without pickle code),
the random states, and manifest.json with sizes, hashes and tensor shapes. It is written into a temporary
sibling, flushed to disk and renamed, so a process killed at any moment leaves the last good one untouched.
It is no export: `save_model` writes the plain folder that from_pretrained reads.

    save_checkpoint("runs/prm", 200, {"model": model, "optimizer": optimizer})
    iteration = load_latest("runs/prm", {"model": model, "optimizer": optimizer})
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from data.errors import UserError
from data.protocols import Stateful
from prm.randomness import process_state, set_rng_state

FORMAT = 2
_NAME = re.compile(r"(\d{8})(\.replaced)?")
"""`.replaced` is a checkpoint moved aside while its successor of the same iteration takes the name."""
PROCESSES = "processes.pt"
"""What every process has of its own: random states, sampling streams."""


class OtherFormat(ValueError):
    """A checkpoint that another version of this package wrote: whole, and not to be read here."""


def save_checkpoint(
    run_dir: str | Path,
    iteration: int,
    parts: Mapping[str, Stateful],
    *,
    keep: int = 2,
    per_process: Sequence[dict[str, Any]] | None = None,
) -> Path:
    """Write one checkpoint of all parts, then remove all but the newest `keep`; return its folder.

    per_process: one `process_state` per process, in rank order; by default this process's own. With several
    processes call `save_together` instead. Raises UserError when a tensor holds NaN or infinity or when the
    disk refuses; earlier checkpoints are then untouched.
    """
    assert keep >= 1 and iteration >= 0
    processes = {"ranks": list(per_process) if per_process is not None else [process_state({})]}
    folder = Path(run_dir) / "checkpoints" / f"{iteration:08d}"

    def fill(temporary: Path) -> None:
        files, shapes = {}, {}
        for name, part in parts.items():  # one after the other: of a large model one part fits, not all
            state = part.state_dict()
            refuse_non_finite({name: state}, f"checkpoint {iteration}")
            files[f"{name}.pt"] = _write_hashed(temporary / f"{name}.pt", state)
            shapes[name] = _tensor_shapes(state)
        files[PROCESSES] = _write_hashed(temporary / PROCESSES, processes)
        manifest = {"format": FORMAT, "iteration": iteration, "files": files, "tensors": shapes}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    replace_folder(folder, fill)
    stale = [path for path in folder.parent.glob(".*.tmp") if path.is_dir()]
    for old in [*list_checkpoints(run_dir)[:-keep], *stale]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def save_together(
    run_dir: str | Path,
    iteration: int,
    parts: Mapping[str, Stateful],
    *,
    accelerator: Any,
    own: Mapping[str, Stateful] | None = None,
    keep: int = 2,
) -> None:
    """Save a checkpoint from every process of a run; the main one writes. Call it on all of them.

    own: parts of which every process has its own, such as a sampling stream. When the main process cannot
    save, all raise its UserError: none is left waiting for the others.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    states = gather_object([process_state(own or {})])
    counted = {name: _Counted(part) for name, part in parts.items()}
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            save_checkpoint(run_dir, iteration, counted, keep=keep, per_process=states)
        except Exception as error:
            if any(part.broken for part in counted.values()):
                raise  # in the middle of what all do together: the others cannot be told
            failure = error
    for part in counted.values():  # whole tensors of a model that is cut up take every process
        part.catch_up()
    said = broadcast_object_list([str(failure) if failure else None])[0]
    if failure:
        raise failure
    if said:
        raise UserError(said)


class _Counted:
    """A part that knows whether its state was taken, and whether that failed."""

    def __init__(self, part: Stateful) -> None:
        self.part = part
        self.taken = False
        self.broken = False

    def state_dict(self) -> dict[str, Any]:
        self.taken, self.broken = True, True
        state = self.part.state_dict()
        self.broken = False
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.part.load_state_dict(state)

    def catch_up(self) -> None:
        if not self.taken:
            self.state_dict()


def load_latest(
    run_dir: str | Path,
    parts: Mapping[str, Stateful],
    *,
    rank: int = 0,
    world: int = 1,
    own: Mapping[str, Stateful] | None = None,
) -> int | None:
    """Load the newest intact checkpoint into `parts` and the random generators; return its iteration.

    None when there is no checkpoint. A damaged one is passed over with a warning. Raises UserError when all
    are damaged, one is of another format, a part is missing, or a tensor's shape differs from the model's
    (nothing is loaded then).
    Saved by another number of processes, `parts` are loaded as they are and `own` keeps what it started with,
    with a warning: what all share, such as the order of the problems, continues exactly.
    """
    folders = list_checkpoints(run_dir)
    for folder in reversed(folders):
        try:
            manifest = verify_checkpoint(folder)
        except OtherFormat as error:
            raise UserError(f"{folder}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{folder}: damaged checkpoint passed over ({error})", stacklevel=2)
            continue
        _check_parts(folder, manifest, parts)
        for name, part in parts.items():
            part.load_state_dict(_read(folder / f"{name}.pt"))
        ranks = _read(folder / PROCESSES)["ranks"]
        if len(ranks) == world:
            for name, part in (own or {}).items():
                part.load_state_dict(ranks[rank]["own"][name])
        else:
            warnings.warn(
                f"{folder}: saved by {len(ranks)} processes and continued by {world}: the samples taken so "
                "far count, none is repeated or left out; random streams start anew from the seed",
                stacklevel=2,
            )
        set_rng_state(ranks[rank if len(ranks) == world else 0]["random"])
        return int(manifest["iteration"])
    if folders:
        raise UserError(
            f"{Path(run_dir) / 'checkpoints'}: none of the {len(folders)} checkpoints is intact; "
            "delete the folder to start over"
        )
    return None


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first; unfinished temporary ones are no checkpoints."""
    folder = Path(run_dir) / "checkpoints"
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    # Of one iteration the fresh folder counts as newer than the one it replaces.
    return sorted(found, key=lambda path: (path.name[:8], not path.name.endswith(".replaced")))


def refuse_used_folder(run_dir: str | Path, *, resume: bool = False) -> None:
    """Raise UserError when a run would overwrite an earlier one's. Call it before loading a model.

    To resume is to continue from checkpoints, or to start where there is nothing; a model without checkpoints
    cannot be continued and would be lost.
    """
    if list_checkpoints(run_dir):
        if resume:
            return
        raise UserError(
            f"{run_dir}: holds the checkpoints of an earlier run; add --resume or change output_dir"
        )
    if (Path(run_dir) / "model").exists():
        raise UserError(f"{run_dir}: holds the model of an earlier run; choose another output_dir")


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the manifest after comparing every file's size and hash. Raises ValueError or OSError."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise OtherFormat(
            f"a checkpoint of another version of Stepwell (format {manifest['format']}, this one reads "
            f"{FORMAT}); finish the run with that version, or start anew with another output_dir"
        )
    for name, expected in manifest["files"].items():
        size = (folder / name).stat().st_size
        if size != expected["bytes"]:
            raise ValueError(f"{name} has {size} bytes instead of {expected['bytes']}")
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise ValueError(f"the content of {name} changed")
    return manifest


def save_model(folder: str | Path, model: Any, tokenizer: Any | None = None) -> None:
    """Write model (safetensors) and tokenizer as a plain transformers folder, whole or not at all.

    Raises UserError for non-finite weights, a full disk, or a folder that holds something else than a model.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and _is_model_or_empty(folder)):
        raise UserError(f"{folder}: exists and is no model folder; choose another place for the model")
    refuse_non_finite({"model": model.state_dict()}, str(folder))

    def fill(temporary: Path) -> None:
        with no_progress_bar():
            model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)

    replace_folder(folder, fill)
    if tokenizer is not None:
        _warn_if_read_differently(folder, tokenizer)


def refuse_non_finite(states: Mapping[str, Any], where: str) -> None:
    """Raise UserError naming the first tensor with NaN or infinity in nested states."""
    for path, tensor in _tensors(states):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{where}: {'.'.join(path)} holds NaN or infinity, nothing was saved; resume from the last "
                "checkpoint with a lower learning rate or stronger gradient clipping"
            )


class _HashedFile:
    """A write-only file that hashes what passes through it, so the data need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        self.bytes += memoryview(block).nbytes
        return self.file.write(block)

    def flush(self) -> None:
        self.file.flush()


def _write_hashed(path: Path, state: Any) -> dict[str, Any]:
    with path.open("wb") as file:
        hashed = _HashedFile(file)
        torch.save(state, hashed)  # type: ignore[arg-type]  # it calls write and flush only
    return {"bytes": hashed.bytes, "sha256": hashed.digest.hexdigest()}


def _read(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` hold exactly what `fill` writes: temporary sibling, fsync, rename."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    replaced = folder.with_name(f"{folder.name}.replaced")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _fsync(path)
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        temporary.rename(folder)
        _fsync(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        cause = _disk_error(error)
        if cause is None:
            raise
        raise UserError(
            f"{folder}: cannot save ({cause.strerror or cause}); free space or choose another output_dir. "
            "What was saved before is intact"
        ) from error


def _disk_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an exception: the zip and safetensors writers wrap it."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        if re.search(r"No space left|File too large|os error|I/O error", str(error), re.IGNORECASE):
            return OSError(str(error).splitlines()[0])
        error = error.__cause__ or error.__context__
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _warn_if_read_differently(folder: Path, tokenizer: Any) -> None:
    """Some model types make AutoTokenizer ignore the tokenizer class that was saved."""
    from transformers import AutoTokenizer

    probe = "Step 1: 12 + 30 = 42.\n\n  So x\u00b2 is done?\nno\n"
    read = AutoTokenizer.from_pretrained(folder)
    if read(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
        warnings.warn(
            f"{folder}: AutoTokenizer reads this tokenizer as {type(read).__name__}, which splits text "
            "differently; read it with prm.model.load_tokenizer, or use an architecture like llama",
            stacklevel=3,
        )


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep the bars of transformers off the screen: they would tear the live view, and fill a log file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _is_model_or_empty(folder: Path) -> bool:
    return (folder / "config.json").is_file() or not any(folder.iterdir())


def _tensors(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, (*path, str(index)))


def _tensor_shapes(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """Shapes of a module's tensors by key; empty for parts that nest theirs, as optimisers do."""
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        return {}
    return {key: list(value.shape) for key, value in state.items()}


def _check_parts(folder: Path, manifest: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
    for name, part in parts.items():
        if name not in manifest["tensors"]:
            known = ", ".join(sorted(manifest["tensors"]))
            raise UserError(
                f"{folder}: holds no part '{name}' (only {known}); it belongs to another kind of run"
            )
        saved, present = manifest["tensors"][name], _tensor_shapes(part.state_dict())
        for key in sorted(saved.keys() | present.keys() if saved and present else ()):
            if saved.get(key) != present.get(key):
                raise UserError(
                    f"{folder}: checkpoint of another model: {name}.{key} has shape "
                    f"{saved.get(key, 'absent')} there, {present.get(key, 'absent')} here; "
                    "use the run's own config or another output_dir"
                )
