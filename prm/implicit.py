"""A PRM that is a language model: its log-ratio to a frozen reference, summed up to a step, is its value.

It learns from outcomes alone (was the final answer right?) and has no head; what a step adds is what its
tokens add to the sum (arXiv:2412.01981). Both models are saved together: the ratio means nothing without the
reference it was trained against.

    prm = new_implicit("Qwen/Qwen2.5-Math-1.5B", beta=0.05)
    prm.save_pretrained("runs/prm/model")          # the policy in it, the reference in reference/
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prm.model import FORMAT, load_backbone, load_config
from prm.next_token import read_next_tokens
from prm.sums import running_sum

REFERENCE = "reference"


class ImplicitPRM(nn.Module):
    """A causal LM and the frozen reference it started from. B rows, T tokens.

    The reference is never trained nor checkpointed: state_dict is the policy's.
    """

    def __init__(self, policy: PreTrainedModel, reference: PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy
        self.reference = reference.requires_grad_(False).eval()

    @property
    def config(self) -> PretrainedConfig:
        return self.policy.config

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @property
    def base_model(self) -> nn.Module:
        return self.policy.base_model

    def get_input_embeddings(self) -> nn.Module:
        return self.policy.get_input_embeddings()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.reference.eval()
        return self

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]  # overloads
        return self.policy.state_dict(*args, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        return self.policy.load_state_dict(state_dict, *args, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        self.policy.save_pretrained(folder)
        self.reference.save_pretrained(Path(folder) / REFERENCE)

    def log_ratios(self, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor) -> Tensor:
        """Return (B, T): at t the sum of log pi - log pi_ref over response tokens up to and with t.

        input_ids (B, T) right-padded; prompt_lengths (B,): tokens that are no response. What stands behind
        a row's last token is meaningless.
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        counts = places[None] >= prompt_lengths[:, None].clamp(min=1)  # the first token has no probability
        return running_sum(self.token_log_ratios(input_ids, attention_mask) * counts)

    def token_log_ratios(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (B, T): log pi - log pi_ref of token t given those before; 0 at t = 0."""
        ratio = _token_logprobs(self.policy, input_ids, attention_mask)
        with torch.no_grad():
            ratio_ref = _token_logprobs(self.reference, input_ids, attention_mask)
        return ratio - ratio_ref


def new_implicit(
    backbone: PreTrainedModel | str | Path, *, joiner: str = "\n", beta: float = 0.05
) -> ImplicitPRM:
    """Return an untrained implicit PRM (every log-ratio 0) from a causal LM: a model, folder, hub id or the
    path of a config.json for random weights."""
    if isinstance(backbone, str | Path) and str(backbone).endswith(".json"):
        policy = AutoModelForCausalLM.from_config(load_config(backbone), dtype=torch.float32)
    else:
        policy = copy.deepcopy(backbone) if isinstance(backbone, PreTrainedModel) else load_backbone(backbone)
    reference = copy.deepcopy(policy)
    config = policy.config
    config.step_joiner, config.prm_format = joiner, FORMAT
    config.prm_objective, config.prm_beta = "implicit", beta
    return ImplicitPRM(policy, reference)


def load_implicit(path: str | Path) -> ImplicitPRM:
    """Return a saved implicit PRM. Raises UserError when either model cannot be read."""
    return ImplicitPRM(load_backbone(path), load_backbone(Path(path) / REFERENCE))


def _token_logprobs(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, T): log-probability of token t given those before; 0 at t = 0 and on padding."""
    targets = attention_mask.bool().clone()
    targets[:, 0] = False
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "target_mask": targets}
    (logprobs,) = read_next_tokens(model, batch, _chosen)
    return logprobs.new_zeros(input_ids.shape).masked_scatter(targets, logprobs)


def _chosen(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, ...]:
    return (-nn.functional.cross_entropy(logits, token_ids, reduction="none"),)
