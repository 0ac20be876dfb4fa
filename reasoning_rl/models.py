"""Actor and critic: the only place where predictions are shifted onto the tokens they speak of.

B rollouts, T tokens, N action tokens, V vocabulary. Rows are right-padded and causal, so no
attention mask is needed: padding stands after everything that counts.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from data.errors import UserError
from prm.lora import adapters_off
from prm.model import PRM, classifier, load_config, load_or_refuse
from prm.next_token import read_next_tokens
from prm.readout import linear_value, objective_of
from reasoning_rl.functional import entropy, token_logprobs


class Actor(nn.Module):
    """A causal LM that returns the logprobs of the tokens it is shown. Also serves as reference."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        action_mask: Tensor,
        *,
        temperature: float = 1.0,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return (logprobs, entropies), both (B, T) f32 and 0 off `action_mask`.

        logprobs[:, t] = log pi(x_t | x_<t) at the sampling temperature. The LM head runs on action positions
        only, in chunks: no (B, T, V) tensor exists. Entropies are all 0 unless asked for.
        """
        real = action_mask.flip(1).cumsum(1).flip(1) > 0  # (B, T): nothing counts behind the last action
        batch = {"input_ids": input_ids, "attention_mask": real, "target_mask": action_mask}

        def read(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, ...]:
            if temperature != 1.0:  # a division is a copy of all logits
                logits = logits / temperature
            logprobs = token_logprobs(logits, token_ids)
            return (logprobs, entropy(logits)) if with_entropy else (logprobs,)

        found = read_next_tokens(self.model, batch, read)  # of the N actions
        zeros = found[0].new_zeros(input_ids.shape)
        logprobs, *entropies = (zeros.masked_scatter(action_mask, values) for values in found)
        return logprobs, entropies[0] if entropies else zeros


class AdaptersOff:
    """The reference of an actor with adapters: the actor's own weights, without them. No second copy."""

    def __init__(self, actor: nn.Module) -> None:
        self.actor = actor

    def __call__(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Return what the actor's forward does."""
        with adapters_off(self.actor):
            return self.actor(*args, **options)


class Critic(nn.Module):
    """A token classifier with one output: the value of the state before each token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, action_mask: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return (values (B, T) with values[:, t] = V(x_<t), 0 off `action_mask`; final values (B,)).

        The final value is that of the whole text: what a truncated response is bootstrapped with.
        """
        after = (
            self.model(input_ids=input_ids, use_cache=False).logits.squeeze(-1).float()
        )  # (B, T): V(x_<=t)
        values = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], dim=1)
        final = after.gather(1, (lengths - 1)[:, None]).squeeze(1)
        return values * action_mask, final


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0, whatever mode the model is put in."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]  # a plain number


def decoder(model: PreTrainedModel) -> nn.Module:
    """The transformer below the LM head."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


def critic_from_policy(policy: PreTrainedModel) -> PreTrainedModel:
    """Return a one-output token classifier with the policy's backbone and a zero head (it predicts 0)."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    critic = AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa")
    decoder(critic).load_state_dict(decoder(policy).state_dict())
    with torch.no_grad():
        for parameter in _head(critic).parameters():
            parameter.zero_()
    disable_dropout(critic)
    return critic.float()


def critic_from_prm(prm: PRM) -> PreTrainedModel:
    """Return a one-output token classifier that starts from a PRM's judgement.

    The value head is the first-order expansion of the PRM's score (for two classes a quarter of the
    difference of their logits), so the critic already orders states as the PRM does before its pre-training.
    Raises UserError for a PRM without a head.
    """
    if objective_of(prm.config) == "implicit":
        raise UserError("an implicit PRM has no head to start a critic from; set critic.init: policy")
    assert isinstance(prm, PreTrainedModel)
    critic = critic_from_policy(prm)
    target = _head(critic)
    weight, bias = linear_value(_head(prm))
    with torch.no_grad():
        target.weight.copy_(weight)
        if target.bias is not None and bias is not None:
            target.bias.copy_(bias)
    return critic


def load_reward_model(path: str | Path) -> PreTrainedModel:
    """Return a pairwise reward model in float32: a sequence or token classifier with one output.

    Raises UserError for any other model.
    """
    config = load_config(path)
    names = getattr(config, "architectures", None) or []
    readers = {
        "ForSequenceClassification": AutoModelForSequenceClassification,
        "ForTokenClassification": AutoModelForTokenClassification,
    }
    reader = next((r for end, r in readers.items() if any(name.endswith(end) for name in names)), None)
    if reader is None or config.num_labels != 1:
        raise UserError(
            f"{path}: no pairwise reward model (a sequence or token classifier with one output): its config "
            f"names {', '.join(names) or 'no architecture'} with {config.num_labels} outputs"
        )
    return load_or_refuse(path, lambda: reader.from_pretrained(path, dtype=torch.float32))


def critic_from_reward_model(reward_model: PreTrainedModel) -> PreTrainedModel:
    """Return a one-output token classifier with a pairwise reward model's backbone and head.

    Its value of a whole answer is the answer's reward; pre-training teaches it the states before
    (arXiv 2307.04964).
    """
    critic = critic_from_policy(reward_model)
    source, target = _head(reward_model), _head(critic)
    with torch.no_grad():
        target.weight.copy_(source.weight)
        if target.bias is not None and source.bias is not None:
            target.bias.copy_(source.bias)
    return critic


def _head(model: PreTrainedModel) -> nn.Linear:
    head = classifier(model)
    if not isinstance(head, nn.Linear):
        raise UserError(f"{type(model).__name__} has no linear token-classification head to read")
    return head
