"""Which settings of a PPO run go together. Not what one field may hold: that is in its type.

    check_together(config)      # raises UserError: what does not, and the remedy

A setting that would do nothing is refused where it differs from its default; equal to it, it may come from a
resolved config, which names them all.
"""

from typing import TYPE_CHECKING

from data.errors import UserError

if TYPE_CHECKING:
    from reasoning_rl.config import PPOConfig


def check_together(config: "PPOConfig") -> None:
    """Raise UserError for settings that contradict each other, and for those that would do nothing."""
    for check in (
        *(_check_algorithm, _check_adapters, _check_batch, _check_reward),
        *(_check_outcome, _check_rollout, _check_kl),
    ):
        check(config)
    if config.update.ptx_coef > 0 and config.demonstrations is None:
        raise UserError("update.ptx_coef needs demonstrations: set demonstrations, or ptx_coef to 0")


def _check_algorithm(config: "PPOConfig") -> None:
    """What each algorithm needs, and what it cannot do."""
    algorithm, uses_baseline = config.algorithm, config.algorithm in ("rloo", "reinforce_pp")
    if not uses_baseline and config.group.baseline != "response":
        raise UserError(
            f"group.baseline {config.group.baseline} is of rloo and reinforce_pp, and algorithm is "
            f"{algorithm}: leave it at response, or change algorithm"
        )
    if algorithm == "ppo":
        if config.critic.init == "reward_model" and not (config.critic.reward_model or config.reward_model):
            raise UserError("critic.init: reward_model needs critic.reward_model, its folder or hub id")
        return
    needs_siblings = algorithm == "grpo" or (uses_baseline and config.group.baseline != "none")
    if needs_siblings and config.rollout.samples_per_problem == 1:
        alone = "" if algorithm == "grpo" else ", or group.baseline to none"
        raise UserError(
            f"algorithm {algorithm} compares answers to one problem: set "
            f"rollout.samples_per_problem above 1{alone}"
        )
    if config.reward.normalise != "off" and algorithm != "rloo":
        raise UserError(
            f"algorithm {algorithm} takes rewards as they are: set reward.normalise to off "
            f"(--preset {algorithm} does)"
        )
    if algorithm == "grpo" and config.kl.coef > 0 and config.kl.place == "reward":
        raise UserError("algorithm grpo has its KL in the loss: set kl.place loss and kl.estimator k3")
    if algorithm == "vine" and config.update.gamma < 1:
        raise UserError("update.gamma discounts returns, algorithm vine has values of steps: set it to 1")


def _check_adapters(config: "PPOConfig") -> None:
    for name, lora in (("lora", config.lora), ("critic.lora", config.critic.lora)):
        if lora.dropout:
            raise UserError(f"{name}.dropout: PPO compares a policy with itself; set it to 0")
    if config.offload == "frozen" and config.prm_backend == "vllm":
        raise UserError("offload: frozen cannot move an engine's weights: set prm_backend to local")
    if config.lora.rank and config.reference_ema > 0:
        raise UserError(
            "with lora.rank the reference is the policy without its adapters, which cannot follow it: "
            "set reference_ema to 0"
        )


def _check_batch(config: "PPOConfig") -> None:
    batch, mini = config.rollouts_per_iteration, config.update.minibatch_size
    if batch % mini:
        near = sorted((d for d in range(1, batch + 1) if batch % d == 0), key=lambda d: abs(d - mini))[:2]
        raise UserError(
            f"rollout batch {batch} (problems_per_iteration x samples_per_problem) is not divisible by "
            f"update.minibatch_size {mini}; use {' or '.join(map(str, near))}"
        )


def _check_reward(config: "PPOConfig") -> None:
    reward = config.reward
    if config.pays_steps and config.prm is None and reward.prover.model is None:
        raise UserError("reward.form needs a reward model: set prm, or reward.form to none")
    if reward.prover.model is not None and reward.form != "progress":
        raise UserError(f"reward.prover scores steps for form progress, not {reward.form}")
    if reward.implicit.weight > 0 and config.algorithm == "grpo":
        raise UserError("reward.implicit pays tokens, algorithm grpo whole answers: take rloo or ppo")
    if reward.overlong_buffer > 0 and reward.outcome_weight == 0:
        raise UserError("reward.overlong_buffer lowers the outcome: set reward.outcome_weight above 0")
    if reward.overlong_buffer > config.rollout.max_new_tokens:
        raise UserError(
            f"reward.overlong_buffer {reward.overlong_buffer} is longer than rollout.max_new_tokens "
            f"{config.rollout.max_new_tokens}; lower it"
        )


def _check_outcome(config: "PPOConfig") -> None:
    """Some parts read an outcome as right or wrong, or as a chance: they need one that is."""
    credit, pays = config.reward.partial_credit, config.reward_model is not None
    if pays and credit != "off":
        raise UserError(
            f"reward.partial_credit {credit} is a grader's, and reward_model pays in its place: set it to off"
        )
    if config.reward.implicit.weight > 0 and (pays or credit == "errors"):
        raise UserError(
            "reward.implicit learns the chance of a right answer from outcomes in [0, 1]: "
            + ("set reward_model to none" if pays else "set reward.partial_credit to tests or off")
            + ", or reward.implicit.weight to 0"
        )
    if config.algorithm == "vine" and (pays or credit != "off"):
        raise UserError(
            "algorithm vine estimates the chance of a verified right answer: "
            + ("set reward_model to none" if pays else "set reward.partial_credit to off")
            + ", or take another algorithm"
        )
    if config.rollout.dynamic_rounds > 0 and pays:
        raise UserError(
            "rollout.dynamic_rounds looks for right and wrong answers, which reward_model has not: set it "
            "to 0"
        )


def _check_rollout(config: "PPOConfig") -> None:
    rollout = config.rollout
    if rollout.dynamic_rounds > 0 and rollout.samples_per_problem == 1:
        raise UserError("rollout.dynamic_rounds compares answers: set samples_per_problem above 1")
    if rollout.old_logprobs == "sampled":
        if rollout.top_p < 1 or rollout.top_k:
            raise UserError(
                "rollout.old_logprobs sampled needs rollout.top_p 1 and top_k 0: with truncation the "
                "sampler's logprobs are those of what was left"
            )
        if rollout.truncated_is != "off":
            raise UserError(
                "rollout.truncated_is compares the trainer's logprobs with the sampler's: set "
                "rollout.old_logprobs to recomputed"
            )
    if rollout.truncated_is == "off" and rollout.is_cap != type(rollout).model_fields["is_cap"].default:
        raise UserError("rollout.is_cap bounds the weights of truncated_is: set that to token or sequence")
    if rollout.engine.max_ahead and (rollout.dynamic_rounds or config.algorithm == "vine"):
        raise UserError(
            "rollout.engine.max_ahead samples while the policy trains, and dynamic_rounds and algorithm "
            "vine need samples in between: set max_ahead to 0"
        )


def _check_kl(config: "PPOConfig") -> None:
    kl = config.kl
    if kl.place == "loss" and kl.estimator == "k1" and kl.coef > 0:
        raise UserError("kl.place: loss needs kl.estimator k2 or k3: the gradient of k1 is 0 on average")
    if kl.target is not None and kl.coef == 0:
        raise UserError("kl.target steers kl.coef, which can never leave 0; set kl.coef above 0")
    if config.hack.action == "raise_kl" and kl.coef == 0:
        raise UserError("hack.action raise_kl multiplies kl.coef, which is 0; set kl.coef above 0")
