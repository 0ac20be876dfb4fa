"""Every number that a PPO run logs, defined once: what it means, where it is healthy, what to do elsewhere.

docs/metrics.md is made from this table, and a test compares them. Bounds None: there is no healthy range.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Indicator:
    """One metric. Bounds None: there is no healthy range, it is read beside others."""

    name: str
    unit: str
    meaning: str
    low: float | None = None
    high: float | None = None
    relative: bool = False
    """Bounds are factors of the run's first value."""
    remedy: str = ""
    after: int = 0
    """Iterations in which the bounds do not hold yet."""
    minor: bool = False
    """Not in the dashboard."""

    def range_text(self) -> str:
        """The healthy range in words, "" without one."""
        of = " x first" if self.relative else ""
        if self.low is None and self.high is None:
            return ""
        if self.low is None:
            return f"<= {self.high:g}{of}"
        if self.high is None:
            return f">= {self.low:g}{of}"
        return f"{self.low:g} to {self.high:g}{of}"

    def is_healthy(self, value: float, first: float) -> bool:
        """Whether a value is within the bounds, given the run's first one."""
        scale = first if self.relative else 1.0
        above = self.low is None or value >= self.low * scale
        return above and (self.high is None or value <= self.high * scale)


INDICATORS: tuple[Indicator, ...] = (
    # --- the policy: what MOSS watches ---
    Indicator(
        "policy/kl_per_response",
        "nats",
        "divergence from the reference, summed over a response",
        low=-1.0,
        high=20.0,
        remedy="raise kl.coef, or steer it with kl.target; lower update.learning_rate",
    ),
    Indicator(
        "policy/perplexity",
        "",
        "exp of the policy's mean token surprise on its own samples; it falls as the policy collapses",
        low=0.5,
        high=2.0,
        relative=True,
        remedy="falling: raise kl.coef or the sampling temperature; rising: lower update.learning_rate, "
        "start from a fine-tuned policy",
    ),
    Indicator(
        "policy/entropy",
        "nats",
        "mean entropy of the next token; near 0 nothing new is tried",
        low=0.1,
        high=2.0,
        relative=True,
        remedy="raise rollout.temperature or update.clip_range_high (0.28); last, update.entropy_coef",
    ),
    Indicator(
        "rollout/response_tokens",
        "tokens",
        "mean length of a response; running to the limit is the mark of a collapse",
        low=0.5,
        high=2.0,
        relative=True,
        remedy="look at samples; lower reward.step_weight, take form delta or min, raise kl.coef",
    ),
    Indicator(
        "reward/total",
        "",
        "mean pay of a response before normalisation: rises in every run, also in one that is hacked",
    ),
    Indicator(
        "reward/total_std",
        "",
        "spread of that pay: at 0 no response is better than another and nothing is learned",
        low=0.02,
        remedy="choose harder problems, more samples_per_problem, or another reward",
    ),
    Indicator("reward/total_p10", "", "tenth percentile of that pay", minor=True),
    Indicator("reward/total_p90", "", "ninetieth percentile: a long tail comes before a collapse"),
    Indicator("reward/process", "", "mean pay of a response for its steps, before normalisation", minor=True),
    Indicator("reward/step_score", "[0, 1]", "the reward model's mean score of a step"),
    Indicator(
        "reward/outcome",
        "[0, 1]",
        "verified accuracy of the samples, whether it is paid or not",
        low=0.02,
        high=0.98,
        remedy="all right or all wrong: the problems teach nothing more; change them",
    ),
    Indicator(
        "reward/response",
        "",
        "mean reward of a response where a reward model pays the outcome, in its own units; the alarms "
        "gap and outcome are then off",
    ),
    # --- the hack gauge ---
    Indicator(
        "hack/score_outcome_gap",
        "",
        "score of the last step less verified outcome: how far the reward model is fooled",
        high=0.3,
        remedy="raise reward.outcome_weight or kl.coef; label fresh samples and train the reward model again",
    ),
    Indicator(
        "hack/score_outcome_correlation",
        "[-1, 1]",
        "of the last step's score with the outcome; falls by itself where nearly all are right",
        minor=True,
    ),
    Indicator(
        "hack/reward_outcome_correlation",
        "[-1, 1]",
        "of a response's pay for steps with its outcome: below 0 wrong answers are paid more",
        low=0.0,
        remedy="do not sum scores: form delta, min or progress; raise reward.outcome_weight",
    ),
    Indicator("hack/gap_trend", "per iteration", "slope of the gap over hack.window iterations", minor=True),
    Indicator("hack/correlation_trend", "per iteration", "slope of that correlation", minor=True),
    Indicator("hack/steps_trend", "steps per iteration", "slope of the number of steps", minor=True),
    Indicator(
        "hack/num_steps",
        "steps",
        "mean steps of a response; more under sum, fewer under min",
        low=0.67,
        high=1.5,
        relative=True,
        remedy="form delta or min against more; group.baseline token and rollout.splitter against fewer",
    ),
    Indicator(
        "hack/at_most_one_step",
        "share",
        "responses of no step or a single one: one giant step escapes a step reward",
        high=0.2,
        remedy="reward.outcome_weight above 0; rollout.splitter step_marker; group.baseline token",
    ),
    Indicator(
        "hack/no_step",
        "share",
        "responses without any step: empty, or thanks",
        high=0.1,
        remedy="pay the outcome for a tenth of the problems at least",
        minor=True,
    ),
    Indicator(
        "hack/repeated_ngrams",
        "share",
        "n-grams that stood before in the same response",
        high=0.4,
        remedy="form delta or min; teach the reward model that a repetition is no step",
    ),
    Indicator(
        "hack/repeated_steps",
        "share",
        "steps that stood before, word for word, in the same response",
        high=0.2,
        remedy="as for repeated n-grams",
    ),
    *(
        Indicator(
            f"alarm/{name}",
            "0 or 1",
            f"the gauge's alarm {what}",
            high=0.0,
            remedy="hack.action decides; docs/algorithms.md says what each alarm saw",
            minor=True,
        )
        for name, what in (
            ("gap", "that scores left verified accuracy behind"),
            ("outcome", "that verified accuracy fell while scores did not"),
            ("correlation", "that step rewards go against outcomes"),
            ("steps", "that the number of steps drifted"),
            ("length", "that the length drifted"),
            ("short", "of responses with at most one step"),
            ("repetition", "of repetition"),
        )
    ),
    # --- the rollouts ---
    Indicator(
        "rollout/truncated",
        "share",
        "responses cut at rollout.max_new_tokens",
        high=0.1,
        remedy="raise rollout.max_new_tokens; if it rises in the run, responses run to the limit: see length",
    ),
    Indicator(
        "rollout/unjudged",
        "share",
        "responses that the grader could not judge",
        high=0.05,
        remedy="look at them: the answer's form, or the grader's time limit",
        minor=True,
    ),
    Indicator(
        "rollout/unscored_steps",
        "share",
        "steps that did not fit the reward model's context",
        high=0.05,
        remedy="a reward model with a longer context, or shorter responses",
        minor=True,
    ),
    Indicator("rollout/tokens", "tokens", "tokens sampled in this iteration", minor=True),
    Indicator(
        "rollout/value_tokens", "tokens", "tokens sampled to estimate values (vine, prover)", minor=True
    ),
    Indicator(
        "rollout/extra_rounds",
        "draws",
        "extra draws of dynamic sampling",
        minor=True,
    ),
    Indicator(
        "rollout/dropped_groups", "problems", "problems left out, their answers all agreed", minor=True
    ),
    Indicator("rollout/filled_groups", "problems", "problems kept though their answers agreed", minor=True),
    Indicator(
        "rollout/outcome_before_filter", "[0, 1]", "verified accuracy before any was left out", minor=True
    ),
    Indicator("vine/start_value", "[0, 1]", "mean chance of success from the problem", minor=True),
    Indicator(
        "group/agree",
        "share",
        "problems whose answers are all right or all wrong: they teach a group algorithm nothing",
        high=0.9,
        remedy="problems of middling difficulty, more samples_per_problem, rollout.dynamic_rounds",
    ),
    # --- the update ---
    Indicator("policy/loss", "", "clipped surrogate loss: says nothing about progress", minor=True),
    Indicator("policy/kl_loss", "", "KL penalty in the loss", minor=True),
    Indicator(
        "policy/clipfrac",
        "share",
        "tokens whose gradient the clip cut off",
        high=0.3,
        remedy="lower update.learning_rate or update.epochs; larger minibatches",
    ),
    Indicator(
        "policy/ratio",
        "",
        "mean probability ratio to the policy that sampled",
        low=0.9,
        high=1.1,
        remedy="lower update.learning_rate; check rollout.temperature, top_p and top_k",
    ),
    Indicator(
        "policy/approx_kl",
        "nats a token",
        "how far one iteration's updates moved the policy (k3)",
        high=0.05,
        remedy="lower update.learning_rate or update.epochs",
        minor=True,
    ),
    Indicator("policy/dual_clipfrac", "share", "tokens that the dual clip held", minor=True),
    Indicator("policy/grad_norm", "", "gradient norm of the policy before clipping", minor=True),
    Indicator(
        "rollout/mismatch_mean",
        "nats a token",
        "mean difference between the sampler's and the trainer's logprob of a token",
        minor=True,
    ),
    Indicator(
        "rollout/mismatch_kl",
        "nats a token",
        "divergence of the trainer's policy from the sampler's (k3)",
        high=0.05,
        remedy="rollout.truncated_is: token; a smaller rollout.engine.max_ahead; the same dtype in both",
        minor=True,
    ),
    Indicator(
        "rollout/importance_weight",
        "",
        "mean truncated importance weight of a token (1: on policy)",
        minor=True,
    ),
    Indicator("rollout/importance_capped", "share", "tokens whose weight the cap cut", minor=True),
    Indicator(
        "rollout/prompt_too_long",
        "share",
        "prompts that left no room for an answer",
        high=0.01,
        remedy="shorten the prompts or raise rollout.engine.max_model_len",
        minor=True,
    ),
    Indicator("rollout/updates_behind", "updates", "age of the weights that sampled this batch", minor=True),
    Indicator("sync/mib", "MiB", "weights sent to the engine after the update", minor=True),
    Indicator(
        "rollout/mismatch_max",
        "nats",
        "largest difference between the sampler's and the trainer's logprob of a token",
        high=0.5,
        remedy="sampler and trainer disagree: the same dtype, temperature and weights in both",
        minor=True,
    ),
    Indicator(
        "critic/loss",
        "",
        "value loss; below its first value once the critic has learned",
        high=2.0,
        relative=True,
        remedy="more critic.pretrain_iterations; lower critic.learning_rate",
    ),
    Indicator(
        "critic/explained_variance",
        "<= 1",
        "share of the returns' variance that the critic foresees; below 0 it is worse than a constant",
        low=0.0,
        after=5,
        remedy="more critic.pretrain_iterations, a higher critic.learning_rate, or another algorithm",
    ),
    Indicator(
        "critic/clipfrac",
        "share",
        "tokens whose value clip decided the loss",
        high=0.5,
        after=3,
        remedy="raise critic.value_clip_range, or switch it off for critic.value_norm",
        minor=True,
    ),
    Indicator("critic/grad_norm", "", "gradient norm of the critic before clipping", minor=True),
    Indicator("critic/value", "", "mean value", minor=True),
    Indicator("critic/return", "", "mean return", minor=True),
    Indicator("kl/coef", "", "price of a nat of divergence per token, as adapted or raised", minor=True),
    Indicator(
        "update/skipped",
        "updates",
        "updates left out because a loss or gradient was not finite",
        high=0.0,
        remedy="lower both learning rates; float32 or bfloat16 in place of float16",
        minor=True,
    ),
    Indicator("update/held", "updates", "updates that a trust-region bound kept from the policy", minor=True),
    Indicator("update/num_updates", "updates", "optimiser updates in this iteration", minor=True),
    Indicator("ptx/loss", "nats a token", "loss on demonstrations", minor=True),
    # --- the online implicit PRM ---
    Indicator("implicit/loss", "nats", "cross-entropy of outcomes, each minibatch before its update"),
    Indicator(
        "implicit/accuracy",
        "[0, 1]",
        "outcomes that it tells right, each minibatch before its update",
        low=0.5,
        after=8,
        remedy="a higher reward.implicit.learning_rate, or less reward.implicit.weight until it has learned",
    ),
    Indicator("implicit/grad_norm", "", "its gradient norm before clipping", minor=True),
    Indicator(
        "implicit/skipped",
        "updates",
        "its updates that were not finite",
        high=0.0,
        remedy="lower reward.implicit.learning_rate",
        minor=True,
    ),
    # --- held-out problems ---
    Indicator("valid/greedy", "[0, 1]", "accuracy on held-out problems, greedy"),
    Indicator("valid/sampled", "[0, 1]", "accuracy on held-out problems at temperature 1"),
    Indicator("valid/greedy_reward", "", "a reward model's mean reward on held-out prompts, greedy"),
    Indicator(
        "valid/sampled_reward", "", "a reward model's mean reward on held-out prompts at temperature 1"
    ),
)
