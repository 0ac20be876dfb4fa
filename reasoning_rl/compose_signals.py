"""The composition of what scores steps besides the reward model: provers and implicit PRMs, from settings."""

from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from data.errors import UserError
from data.prompts import get_template, render
from data.protocols import Grader
from data.schema import Sampling
from prm.implicit import ImplicitPRM, load_implicit, new_implicit
from prm.labelling.completer import Completer
from prm.model import load_backbone, load_config, load_tokenizer
from prm.readout import objective_of
from reasoning_rl.config import PPOConfig
from reasoning_rl.prefix_values import PrefixValues
from reasoning_rl.prime import OnlineImplicitPRM
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.signals import Signals


def make_signals(
    config: PPOConfig, policy: PreTrainedModel, tokenizer: Any, grader: Grader, accelerator: Accelerator
) -> Signals:
    """Build what the settings ask for; raises UserError for models that cannot serve."""
    prover = _prover(config, grader, accelerator) if config.reward.prover.model is not None else None
    implicit = None
    if config.reward.implicit.weight > 0:
        implicit = OnlineImplicitPRM(
            _implicit(config, policy, tokenizer),
            config.reward.implicit,
            accelerator,
            micro_batch_tokens=config.update.micro_batch_tokens,
        )
    return Signals(prover, implicit, accelerator)


def _prover(config: PPOConfig, grader: Grader, accelerator: Accelerator) -> PrefixValues:
    """A frozen policy that completes prefixes; it may have a tokenizer of its own."""
    settings, rollout = config.reward.prover, config.rollout
    model, tokenizer = load_backbone(settings.model or ""), load_tokenizer(settings.model or "")
    world, rank = accelerator.num_processes, accelerator.process_index
    generator = HFGenerator(
        model.to(accelerator.device),
        tokenizer,
        max_batch=rollout.max_batch,
        seed=config.seed * world + rank,
    )
    completer = Completer(
        generator,
        grader,
        lambda text: render(rollout.template, text, tokenizer),
        Sampling(
            max_new_tokens=rollout.max_new_tokens,
            n=settings.samples,
            stop=get_template(rollout.template).stop,
        ),
        splitter=rollout.splitter,
    )
    return PrefixValues(completer, best_of=settings.best_of)


def _implicit(config: PPOConfig, policy: PreTrainedModel, tokenizer: Any) -> ImplicitPRM:
    settings = config.reward.implicit
    if settings.model is None:
        return new_implicit(policy, beta=settings.beta)
    if load_tokenizer(settings.model).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{settings.model}: pays tokens, so it must share the policy's tokenizer, and theirs differ; "
            "leave reward.implicit.model out to start from the policy"
        )
    if objective_of(load_config(settings.model)) == "implicit":
        return load_implicit(settings.model)
    return new_implicit(settings.model, beta=settings.beta)
