"""The composition root: from settings to models, readers, graders, scorers and the loops that use them.

With commands.py, prm_eval.py and quickstart.py the only modules of this package that know the eval package.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from data.errors import UserError
from data.grading import grade_all
from data.own import OwnScorer, reward_problems
from data.plugins import is_plugin
from data.prompts import describe_template, get_template, render
from data.protocols import Grader, MetricLog, ResponseScorer, StepScorer, TextGenerator
from data.schema import Problem, Sampling
from data.task_readers import read_sft
from eval.answers import extract_answer
from eval.benchmarks import get_benchmark, make_grader, make_public_check, read_benchmark
from eval.run import EvalResult, evaluate
from eval.sample_files import read_sample_scores, read_samples
from prm.checkpoint import refuse_used_folder, save_model
from prm.formats import PRMFormat, find_format, load
from prm.formats.load import Backend, Loaded
from prm.lora import merge, save_adapters
from prm.model import is_stepwell_prm, load_backbone, load_prm, load_tokenizer
from prm.scorer import LocalScorer
from prm.sharding import compute_dtype
from reasoning_rl.compose_problems import VALIDATION_SEED, make_run_grader, read_pool, sources_of
from reasoning_rl.compose_signals import make_signals
from reasoning_rl.config import PPOConfig
from reasoning_rl.eval_config import EvalConfig
from reasoning_rl.learner import Learner
from reasoning_rl.models import (
    critic_from_policy,
    critic_from_prm,
    critic_from_reward_model,
    load_reward_model,
)
from reasoning_rl.offload import VisitingScorer
from reasoning_rl.ppo import run_ppo
from reasoning_rl.ptx import Demonstrations
from reasoning_rl.reward_model import ResponseRewardModel, load_response_scorer
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rollout.make import make_generator
from reasoning_rl.rollout.pool import EngineChoice, open_generator
from reasoning_rl.sft import encode_pairs
from reasoning_rl.shares import refuse_what_needs_one_process

ENGINE_ROWS = 1024
"""Sequences that an evaluation hands over to engines at once, however many they are and take."""


def train_ppo(config: PPOConfig, *, accelerator: Accelerator, log: MetricLog, resume: bool = False) -> Path:
    """Run PPO as configured; return the folder of the trained policy.

    Raises UserError for anything the settings name that cannot be used, before training starts.
    """
    refuse_used_folder(config.output_dir, resume=resume)
    refuse_what_needs_one_process(config, accelerator.num_processes)
    sources = sources_of(config)
    if any(get_benchmark(name).judges == "program" for name, _ in sources):
        check_isolation(allow_unsandboxed=config.allow_unsandboxed)
    say = warnings.warn if accelerator.is_main_process else str
    problems, held_out = read_pool(config, sources, say=say)
    if len(problems) < config.rollout.problems_per_iteration:
        raise UserError(
            f"{config.problems}: {len(problems)} training problems beside {len(held_out)} held out, fewer "
            f"than rollout.problems_per_iteration {config.rollout.problems_per_iteration}; lower it or "
            "num_validation, or raise num_problems"
        )
    grader = make_run_grader(
        config,
        sources,
        timeout_s=config.reward.test_timeout_s,
        partial_credit=config.reward.partial_credit,
    )
    policy, tokenizer = load_backbone(config.policy), load_tokenizer(config.policy)
    reference = None if config.lora.rank else load_backbone(config.policy)
    scorer = _training_scorer(config, accelerator.device)
    reward_model: ResponseScorer | None = None
    if config.reward_model is not None:
        reward_model = load_response_scorer(config.reward_model, device=accelerator.device)
    engine = config.rollout.engine
    # Before the learner: its engine may change the policy's number format in place.
    signals = make_signals(config, policy, tokenizer, make_run_grader(config, sources), accelerator)
    critic = _critic(config, policy, tokenizer, scorer)
    for one in (scorer, reward_model):
        if isinstance(one, LocalScorer | ResponseRewardModel):  # published ones are loaded so
            one.model.to(compute_dtype(accelerator))
    if config.offload == "frozen":  # before policy and critic take their place
        if scorer is not None and not isinstance(scorer, OwnScorer):
            scorer = VisitingScorer(scorer, accelerator.device)
        if isinstance(reward_model, ResponseRewardModel):
            reward_model = VisitingScorer(reward_model, accelerator.device)
    learner = Learner(
        config,
        accelerator,
        policy=policy,
        reference=reference,
        critic=critic,
        samples_here=engine.backend == "hf" or engine.sync != "files",
    )
    world, rank = accelerator.num_processes, accelerator.process_index
    generator = make_generator(
        engine,
        path=config.policy,
        tokenizer=tokenizer,
        model=learner.policy,
        max_batch=config.rollout.max_batch,
        seed=config.seed * world + rank,
        trains=True,
    )
    with contextlib.ExitStack() as stack:
        if hasattr(generator, "close"):
            stack.callback(generator.close)
        run_ppo(
            config,
            learner=learner,
            tokenizer=tokenizer,
            generator=generator,
            problems=problems,
            render=lambda text: render(config.rollout.template, text, tokenizer),
            scorer=scorer,
            grader=grader,
            log=log,
            validate=_validation(config, held_out, grader, tokenizer, reward_model),
            demonstrations=_demonstrations(config, tokenizer, accelerator),
            signals=signals,
            reward_model=reward_model,
            resume=resume,
        )
    folder = Path(config.output_dir) / "model"
    if config.lora.rank:
        if accelerator.is_main_process:
            save_adapters(folder.with_name("adapter"), learner.policy, config.policy)
        merge(learner.policy)
    if accelerator.is_main_process:
        save_model(folder, learner.policy, tokenizer)
    accelerator.wait_for_everyone()
    return folder


def _training_scorer(config: PPOConfig, device: Any) -> StepScorer | None:
    """Step rewards are made from probabilities that do not change on resume: others are refused."""
    if config.prm is None:
        return None
    spec = find_format(config.prm, config.prm_format)
    if spec.head == "generative":
        raise UserError(
            f"{config.prm}: format '{spec.name}' samples critiques, and their random stream is in no "
            "checkpoint: a resumed run would be another; take a reward model that scores in one forward"
        )
    if not spec.is_probability:
        raise UserError(
            f"{config.prm}: format '{spec.name}' gives raw scores, and step rewards need "
            "probabilities in [0, 1]; take a format with another readout (docs/formats.md)"
        )
    return load_step_scorer(config.prm, spec, device=device, backend=config.prm_backend).scorer


def _critic(
    config: PPOConfig, policy: PreTrainedModel, tokenizer: Any, scorer: StepScorer | None
) -> PreTrainedModel | None:
    """None for the algorithms without one. A critic reads the policy's tokens, so it can start from a reward
    model only where the two share them."""
    if config.algorithm != "ppo":
        return None
    if config.critic.init == "reward_model":
        path = config.critic.reward_model or config.reward_model or ""
        if is_plugin(path):
            raise UserError(f"critic.init: reward_model needs a model, and {path} is a function; set policy")
        _same_tokens("reward_model", load_tokenizer(path), tokenizer)
        return critic_from_reward_model(load_reward_model(path))
    if config.critic.init == "policy" or scorer is None:
        return critic_from_policy(policy)
    if isinstance(scorer, LocalScorer):
        prm, prm_tokenizer = scorer.model, scorer.tokenizer
    elif (
        config.prm is not None and not is_plugin(config.prm) and is_stepwell_prm(config.prm)
    ):  # the engine holds the scorer's weights
        prm, prm_tokenizer = load_prm(config.prm), load_tokenizer(config.prm)
    else:
        raise UserError("critic.init: prm needs a reward model trained here; set critic.init: policy")
    _same_tokens("prm", prm_tokenizer, tokenizer)
    return critic_from_prm(prm)


def _same_tokens(init: str, own: Any, tokenizer: Any) -> None:
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"critic.init: {init} needs a reward model with the policy's tokenizer, and theirs differ; "
            "set critic.init: policy (the reward model itself may use any tokenizer)"
        )


def _validation(
    config: PPOConfig,
    problems: list[Problem],
    grader: Grader,
    tokenizer: Any,
    reward_model: ResponseScorer | None = None,
) -> Callable[[TextGenerator], Mapping[str, float]] | None:
    """Greedy and sampled accuracy (or mean reward) on held-out problems, from a random stream of its own."""
    if not config.num_validation:
        return None
    prompts = [render(config.rollout.template, p.text, tokenizer) for p in problems]

    def validate(training: TextGenerator) -> dict[str, float]:
        generator = training
        if isinstance(training, HFGenerator):  # seeding it would set its random stream
            generator = HFGenerator(training.model, tokenizer, max_batch=training.max_batch)
        accuracies = {}
        for label, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            sampling = Sampling(
                max_new_tokens=config.rollout.max_new_tokens,
                temperature=temperature,
                stop=get_template(config.rollout.template).stop,
                seed=VALIDATION_SEED,
            )
            drawn = generator.generate(prompts, sampling)
            graded = grade_all(grader, problems, [samples[0].text for samples in drawn])
            verdicts = [verdict.status for verdict in graded]
            judged = len(verdicts) - verdicts.count("unjudged")
            if judged or reward_model is None:
                accuracies[f"valid/{label}"] = verdicts.count("correct") / max(judged, 1)
            if reward_model is not None:
                texts = [s[0].text for s in drawn]
                paid = reward_problems(reward_model, problems, prompts, texts)
                rewards = [reward for reward in paid if reward is not None]
                accuracies[f"valid/{label}_reward"] = sum(rewards) / max(len(rewards), 1)
        return accuracies

    return validate


def _demonstrations(config: PPOConfig, tokenizer: Any, accelerator: Accelerator) -> Demonstrations | None:
    if config.demonstrations is None:
        return None
    encoded = encode_pairs(tokenizer, read_sft(config.demonstrations))
    if config.update.minibatch_size < accelerator.num_processes:
        raise UserError(
            f"update.minibatch_size {config.update.minibatch_size} gives {accelerator.num_processes} "
            "processes less than one demonstration each; raise it"
        )
    return Demonstrations(encoded, batch_size=config.update.minibatch_size, seed=config.seed)


def check_isolation(*, allow_unsandboxed: bool) -> str:
    """How far this machine keeps programs in; none at all must be asked for."""
    from eval.sandbox import isolation

    found = isolation()
    if found.level == "unsandboxed" and not allow_unsandboxed:
        raise UserError(
            "this machine offers no isolation for model-written programs "
            f"({'; '.join(found.missing) or 'not Linux'})\nuse a Linux with user namespaces or landlock, or "
            "run them as yourself with --allow-unsandboxed"
        )
    return found.level


def evaluate_benchmark(
    name: str,
    config: EvalConfig,
    *,
    device: Any = "cpu",
    on_progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    given: tuple[PreTrainedModel, Any] | None = None,
) -> EvalResult:
    """Evaluate a model, or existing samples, on a benchmark; everything goes to output_dir/name/.

    given: model and tokenizer in memory, in the place of `config.model`.
    """
    benchmark = get_benchmark(name)
    isolation = None
    if benchmark.judges == "program":
        isolation = check_isolation(allow_unsandboxed=config.allow_unsandboxed)
    problems: list[Problem] = read_benchmark(
        name,
        source=config.source,
        split=config.split,
        limit=config.limit,
        difficulty=config.difficulty,
        seed=config.seed,
    )
    template = config.template or benchmark.template
    common: dict[str, Any] = {
        "out_dir": Path(config.output_dir) / name,
        "grader": make_grader(name, config.grader),
        "extract": (lambda text: extract_answer(text, benchmark.chain)) if benchmark.chain else None,
        "passes_public": make_public_check(name),
        "settings": {
            "benchmark": name,
            **config.model_dump(
                mode="json",
                exclude={"output_dir", "max_batch", "allow_unsandboxed", *EngineChoice.model_fields},
            ),
            **config.identity(),
            **({"isolation": isolation} if isolation else {}),
            **({} if config.samples else {"prompt": describe_template(template)}),
        },
        "on_progress": on_progress,
    }
    if config.samples is not None:
        # Ids are checked against all problems: a file that covers more than --limit is no mistake.
        every = read_benchmark(
            name,
            source=config.source,
            split=config.split,
            difficulty=config.difficulty,
            limit=max(config.limit or 0, 500) if benchmark.validation_split else None,
            seed=config.seed,
        )
        samples = read_samples(config.samples, every)
        return evaluate(problems, samples=samples, scores=read_sample_scores(config.samples, every), **common)
    tokenizer = given[1] if given else load_tokenizer(config.model or "")
    temperature = config.temperature
    if temperature is None:
        temperature = 0.0 if config.num_samples == 1 else 1.0
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens or benchmark.max_new_tokens,
        temperature=temperature,
        top_p=config.top_p,
        n=config.num_samples,
        stop=get_template(template).stop,
        seed=config.seed,
    )
    # An engine keeps itself full: batches are only what a killed run may lose.
    rows = config.max_batch if config.backend == "hf" else ENGINE_ROWS
    options: dict[str, Any] = {"max_batch": config.max_batch, "seed": config.seed}
    opened: Any = open_generator(
        config, path=config.model or "", tokenizer=tokenizer, device=device, **options
    )
    if given:
        opened = contextlib.nullcontext(HFGenerator(*given, **options))
    with opened as generator:
        return evaluate(
            problems,
            generator=generator,
            render=lambda text: render(template, text, tokenizer),
            sampling=sampling,
            batch_size=max(1, rows // config.num_samples),
            **common,
        )


def load_step_scorer(
    path: str,
    prm_format: str | PRMFormat | None = None,
    *,
    device: Any = "cpu",
    max_batch_tokens: int | None = None,
    backend: Backend = "local",
) -> Loaded:
    """Load a reward model of any format; one that writes critiques samples them with transformers."""
    return load(
        path,
        prm_format,
        device=device,
        max_batch_tokens=max_batch_tokens,
        make_generator=lambda model, tokenizer: HFGenerator(model, tokenizer),
        backend=backend,
    )
