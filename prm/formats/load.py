"""The one entry for every PRM: a path or hub id in, a StepScorer out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from data.errors import UserError
from data.own import OwnScorer
from data.plugins import is_plugin
from data.protocols import StepScorer, TextGenerator
from prm.config import Backend
from prm.formats.generative import CriticScorer
from prm.formats.genprm import GenPRMScorer
from prm.formats.heads import load_language_model, load_parts, parts_of
from prm.formats.recognise import is_published, recognise
from prm.formats.registry import get_format
from prm.formats.scorers import FormatScorer, RatioScorer
from prm.formats.spec import PRMFormat
from prm.formats.tokens import check_tokens
from prm.model import FORMAT as STEPWELL
from prm.model import load_config, load_prm, load_tokenizer
from prm.scorer import LocalScorer

logger = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Loaded:
    """A scorer with the format it was loaded as."""

    scorer: StepScorer
    format: PRMFormat


OWN = PRMFormat(name="own", splitter="newline")
"""Stands for a scorer of the user's: its scores are probabilities, its steps lines unless told otherwise."""


def find_format(path: str | Path, name: str | None = None) -> PRMFormat:
    """Return the format of that name (registered, or a .yaml file); none: as recognised from the model, OWN
    for "module:function", a step scorer of the user's own.

    Raises UserError for an unknown name, and when the format cannot be told.
    """
    if name is None and is_plugin(path):
        return OWN
    return get_format(name) if name is not None else recognise(path, load_config(path))


def load_scorer(path: str | Path, format: str | PRMFormat | None = None, **options: Any) -> StepScorer:  # noqa: A002
    """Return a StepScorer over the PRM at `path`; see `load` for the options."""
    return load(path, format, **options).scorer


def load(
    path: str | Path,
    format: str | PRMFormat | None = None,  # noqa: A002 - the word users know
    *,
    device: torch.device | str = "cpu",
    dtype: DType = "auto",
    max_batch_tokens: int | None = None,
    max_length: int | None = None,
    reference: str | Path | None = None,
    make_generator: Callable[[Any, Any], TextGenerator] | None = None,
    run_code: Callable[[str], str] | None = None,
    backend: Backend = "local",
) -> Loaded:
    """Return scorer and format of a PRM: a folder, a hub id, or "module:function" (data.own.OwnScorer).

    format: a registered name, a .yaml file, or None: recognised from name and config. dtype: "auto" is
    float32 on a CPU and for our own models, bfloat16 elsewhere. reference: the other model of a log-ratio.
    make_generator: model and tokenizer -> TextGenerator, for critics. run_code: the sandbox for code that a
    critic writes. backend: what runs a class head, torch in this process or a vLLM engine, whose batches
    are its own (max_batch_tokens does not apply).

    Raises UserError when the format cannot be told, or model and tokenizer do not fit it.
    """
    chosen = format if isinstance(format, PRMFormat) else find_format(path, format)
    device = torch.device(device)
    size: dict[str, Any] = {"max_batch_tokens": max_batch_tokens, "max_length": max_length}
    logger.info(
        "%s: format %s, scores %s, solutions by %s unless told otherwise",
        path,
        chosen.name,
        "in [0, 1]" if chosen.is_probability else "raw",
        chosen.aggregation,
    )
    kind = _dtype(dtype, device)
    if isinstance(path, str) and is_plugin(path):
        if backend != "local":
            raise UserError(f"{path}: is a function, which no engine runs; leave the backend at local")
        return Loaded(OwnScorer(path), chosen)
    if backend == "vllm":
        from prm.vllm_scorer import VllmScorer

        is_own = chosen.name == STEPWELL
        precision = "float32" if dtype == "auto" and is_own else str(kind).removeprefix("torch.")
        return Loaded(VllmScorer.load(path, chosen, dtype=precision, max_length=max_length), chosen)
    if chosen.name == STEPWELL:
        prm = load_prm(path)
        prm = prm if dtype == "auto" else prm.to(kind)  # type: ignore[arg-type]  # wrapped: loses self
        scorer: StepScorer = LocalScorer(prm, load_tokenizer(path), device=device, **size)
        return Loaded(scorer, chosen)
    tokenizer = load_tokenizer(path)
    if chosen.head == "generative":
        model = load_language_model(path, kind).to(device)
        return Loaded(_critic(model, tokenizer, chosen, make_generator, run_code), chosen)
    check_tokens(tokenizer, chosen, published=is_published(path, chosen))
    if chosen.head == "log_ratio":
        other = reference or chosen.reference
        if other is None:
            raise UserError(
                f"format '{chosen.name}' compares two models; give the other one: --reference PATH"
            )
        models = load_language_model(path, kind), load_language_model(other, kind)
        return Loaded(RatioScorer(*models, tokenizer, chosen, device=device, **size), chosen)
    parts = load_parts(path, chosen, tokenizer, kind)
    return Loaded(FormatScorer(parts, tokenizer, chosen, device=device, **size), chosen)


def load_given(
    model: PreTrainedModel,
    tokenizer: Any,
    format: str | PRMFormat | None = None,  # noqa: A002 - the word users know
) -> Loaded:
    """Return scorer and format of a PRM in memory: one trained here, or a token classifier or language model
    of a published format. It stays on its device. Raises UserError for formats with other heads."""
    if isinstance(format, str):
        format = get_format(format)  # noqa: A001
    spec = format or recognise(getattr(model.config, "_name_or_path", "") or "the model", model.config)
    if spec.name == STEPWELL:
        return Loaded(LocalScorer(model, tokenizer), spec)
    check_tokens(tokenizer, spec, published=False)
    return Loaded(FormatScorer(parts_of(model, spec, tokenizer), tokenizer, spec, device=model.device), spec)


def _critic(
    model: Any,
    tokenizer: Any,
    format: PRMFormat,  # noqa: A002
    make_generator: Callable[[Any, Any], TextGenerator] | None,
    run_code: Callable[[str], str] | None,
) -> StepScorer:
    if make_generator is None:
        raise UserError(
            f"format '{format.name}' writes critiques; give make_generator, or use `stepwell score`"
        )
    generator = make_generator(model, tokenizer)
    if format.critique == "genprm":
        return GenPRMScorer(generator, tokenizer, format, run_code=run_code)
    return CriticScorer(generator, tokenizer, format)


def _dtype(name: DType, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
