"""Settings of supervised training, of adapters and of a process reward model. Nothing here imports torch, so
that a command's help appears at once.

    PRMConfig(data="steps.jsonl", model="Qwen/Qwen2.5-Math-1.5B", fit=FitConfig(epochs=2))
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from data.errors import UserError
from data.settings import Settings
from prm.tracking import TrackingConfig

Backend = Literal["local", "vllm"]
Objective = Literal["cross_entropy", "bce", "three_class", "mse", "pqm", "bradley_terry", "implicit"]
PairKind = Literal["steps", "solutions"]
Supervision = Literal["all", "first_error"]
"""all: every labelled step. first_error: labelled steps up to and including the first wrong one; what follows
a mistake has no agreed label."""


class FitConfig(Settings):
    """How to train on a fixed set of examples."""

    epochs: int = Field(1, ge=1)
    """Passes over the examples."""
    max_updates: int | None = Field(None, ge=1)
    """Stop after this many optimiser updates; null: off. The learning-rate schedule ends there too."""
    batch_size: int = Field(32, ge=1)
    """Examples per update, over all processes. A multiple of the number of processes."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Most tokens in one forward, padding included. Lower it when memory runs out: the result is the same."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone and compute the layer again in the backward: a third more time, far less
    memory; the numbers are the same."""
    learning_rate: float = Field(1e-5, gt=0, lt=1)
    """Peak learning rate. About 1e-5 for pretrained weights, 1e-3 for a small model from scratch."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the updates over which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after the warm-up."""
    final_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end, as a share of the peak (cosine and linear)."""
    weight_decay: float = Field(0.0, ge=0, lt=1)
    """AdamW weight decay of matrices; norms and biases are never decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moment decays. Raise the second to 0.999 for small batches."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Clip the global gradient norm to this."""
    overlong: Literal["error", "skip"] = "error"
    """An example longer than the model's context or micro_batch_tokens: stop, or leave it out."""
    seed: int = Field(0, ge=0)
    """Seeds the order of the examples and dropout."""
    log_every: int = Field(1, ge=1)
    """Updates between log entries; train/* are then averages over them."""
    validate_every: int | None = Field(None, ge=1)
    """Updates between validations; null: only after the last update."""
    save_every: int | None = Field(500, ge=1)
    """Updates between checkpoints; null: none are written and the run cannot resume."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints to keep. Two survive even a disk that damages the newest."""


class LoraSettings(Settings):
    """Low-rank adapters on every linear layer below the head."""

    rank: int = Field(0, ge=0)
    """Rank of the adapters; 0: off, all weights are trained. 8 to 64 for models of billions."""
    alpha: float = Field(16.0, gt=0)
    """The adapters' product is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapters."""
    quantize: Literal["nf4"] | None = None
    """Hold the frozen linear layers in 4-bit NormalFloat, their scales quantised as well; null: off. An
    eighth of the memory of float32, and slower (needs bitsandbytes)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.quantize and not self.rank:
            raise UserError("lora.quantize freezes the weights, and nothing would learn: set lora.rank")
        return self


class PRMConfig(Settings):
    """Training of a process reward model."""

    data: str
    """Step-labelled solutions: file, folder or hub id."""
    format: str = "auto"
    """Format of the data; auto: told from its fields; module:function: a reader of your own."""
    neutral: Literal["positive", "half", "negative", "mask", "class"] = "positive"
    """What a neutral rating of PRM800K counts as; class: a class of its own (objective: three_class)."""
    objective: Objective = "cross_entropy"
    """What is learned. cross_entropy: two classes, hard or soft labels; bce: one logit; three_class: wrong,
    neutral, correct; mse: squared error of the probability; pqm: ranking of a solution's steps;
    bradley_terry: pairs of steps or solutions; implicit: outcomes only, log-ratio to a reference."""
    hard_above: float | None = Field(None, ge=0, lt=1)
    """Labels above this become 1, the others 0 (0 is best for Monte Carlo labels that a judge confirmed);
    null: soft labels stay soft."""
    zeta: float = Field(4.0, ge=0)
    """Margin between right and wrong steps (objective: pqm)."""
    beta: float = Field(0.05, gt=0)
    """Scale of the log-ratio (objective: implicit)."""
    pairs: PairKind = "steps"
    """steps: right and wrong siblings of one prefix; solutions: right and wrong answers to one problem
    (objective: bradley_terry)."""
    eval_data: str | None = None
    """Held-out solutions in the same format; null: off, a share of the training problems is held out."""
    split: str = "train"
    """Split of a hub id or folder given as data."""
    eval_split: str = "test"
    """Split of a hub id or folder given as eval_data."""
    holdout: float = Field(0.05, ge=0, lt=1)
    """Share of the problems held out for validation when eval_data is null."""
    model: str | None = None
    """Folder or hub id of a causal LM to start from, or of a PRM to train further; null: off."""
    model_config_file: str | None = None
    """Path of a transformers config.json to start from random weights; null: off, use model."""
    extra_layers: int = Field(0, ge=0)
    """New layers on top of the model's own. Helps models of a few layers; 0 for anything larger."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; null: the model's own."""
    joiner: str = "\n"
    """Text between steps; saved in the model's config."""
    supervise: Supervision = "first_error"
    """first_error: up to the first wrong step, what human labels agree on; all: every labelled step."""
    max_length: int = Field(2048, ge=2)
    """Most tokens of problem and steps. fit.overlong says what happens to steps beyond."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Score below which a step counts as wrong in validation."""
    keep_best: str | None = None
    """Validation metric, larger is better (e.g. valid/step_auc), whose best weights are kept; null: off, the
    last weights are."""
    output_dir: str = "runs/prm"
    """Checkpoints go to checkpoints/ in it, the trained model to model/."""
    head_updates: int = Field(0, ge=0)
    """So many first updates train the new head alone, at head_learning_rate; the schedule starts after."""
    head_learning_rate: float = Field(1e-4, gt=0, lt=1)
    """Constant learning rate of the head-only stage."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Solutions side by side in one row, without padding. auto: where the attention kernel reads their
    boundaries (flash attention); else length-sorted batches, which are faster on a CPU."""
    lora: LoraSettings = LoraSettings()
    fit: FitConfig = FitConfig()
    tracking: TrackingConfig = TrackingConfig()
