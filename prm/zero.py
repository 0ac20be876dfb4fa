"""A model on a DeepSpeed engine of its own, ZeRO stage 1, 2 or 3.

accelerate launches and gives the settings; it knows one engine a run, so `accelerator.prepare` is not used.
"""

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from prm.sharding import Cut, Trained


class _SkippingAdamW(torch.optim.AdamW):
    """AdamW that can be told to leave one update out: DeepSpeed's engine has no call for that."""

    skip = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # DeepSpeed gives no closure
        if not self.skip:
            super().step(closure)


class DeepSpeed(Cut):
    """An engine of its own, ZeRO stage 1, 2 or 3. accelerate gives the settings; it knows one engine only."""

    def _place(self, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        if optimizer is not None:
            assert isinstance(optimizer, torch.optim.AdamW)
            optimizer.__class__ = _SkippingAdamW
        self.wrapped, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(self.accelerator, max_grad_norm=self.max_grad_norm),
        )
        self.optimizer = optimizer

    def accumulate(self, is_last: bool) -> AbstractContextManager[Any]:
        self.wrapped.set_gradient_accumulation_boundary(is_boundary=is_last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.wrapped.backward(loss)

    def clip(self) -> float:
        return 0.0

    def step(self, *, apply: bool) -> float:
        self.optimizer.skip = not apply
        self.wrapped.step()
        self.optimizer.skip = False
        return float(self.wrapped.get_global_grad_norm())

    def follow(self, leader: Trained, eta: float) -> None:
        super().follow(leader, eta)
        # ZeRO-3 keeps small parameters whole between forwards, and would not see what became of their parts.
        for parameter in self.parameters.values():
            if hasattr(parameter, "ds_id"):
                parameter.partition()  # type: ignore[attr-defined]  # DeepSpeed gives it

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            return parameter.detach().clone()

    def _trained(self, parameter: nn.Parameter) -> Tensor:
        value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        return self._whole(parameter) if value is None else value

    def _local(self, parameter: nn.Parameter) -> Tensor:
        return getattr(parameter, "ds_tensor", parameter.data)

    def _set(self, parameter: nn.Parameter, value: Tensor) -> None:
        value = value.to(self.accelerator.device)
        with deepspeed.zero.GatheredParameters(
            [parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")
        ):
            parameter.data.copy_(value)
        if parameter.requires_grad and hasattr(parameter, "ds_id"):
            safe_set_local_fp32_param(parameter, self._part(parameter, value.float()))
        elif parameter.requires_grad:
            safe_set_full_fp32_param(parameter, value.float())

    def _part(self, parameter: Any, value: Tensor) -> Tensor:
        """What ZeRO-3 keeps of a whole tensor here: the last parts are filled up with zeros.

        DeepSpeed's calls for whole tensors forget to, and fail where a parameter does not divide evenly.
        """
        size = parameter.ds_tensor.ds_numel
        flat = value.flatten()
        flat = nn.functional.pad(flat, (0, size * self.accelerator.num_processes - flat.numel()))
        return flat.narrow(0, size * self.accelerator.process_index, size)

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        steps = [state["step"] for state in self.optimizer.state.values() if "step" in state]
        if not steps:
            return {}
        self._link()
        moments = {
            key: safe_get_full_optimizer_state(parameter, key).reshape(_shape(parameter)).cpu()
            for key in ("exp_avg", "exp_avg_sq")
        }
        return {"step": steps[0].cpu(), **moments}

    def _link(self) -> None:
        """Tell parameters where in ZeRO-1's and 2's flat optimiser state their part lies.

        DeepSpeed does so while the first group is updated, when the other groups have no state yet.
        """
        zero = self.wrapped.optimizer
        if hasattr(zero, "single_partition_of_fp32_groups"):
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _set_state(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        if not states:
            return
        zero = self.wrapped.optimizer
        steps = next(iter(states.values()))["step"]
        name = "single_partition_of_fp32_groups"
        for flat in getattr(zero, name) if hasattr(zero, name) else zero.fp32_partitioned_groups_flat:
            moments = {key: torch.zeros_like(flat) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[flat] = {"step": steps.to(flat.device).clone(), **moments}
        self._link()
        for name, values in states.items():
            for key in ("exp_avg", "exp_avg_sq"):
                value = values[key].to(self.accelerator.device)
                parameter = self.parameters[name]
                if hasattr(parameter, "ds_id"):
                    safe_set_local_optimizer_state(parameter, self._part(parameter, value), key)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)


def deepspeed_config(accelerator: Any, *, max_grad_norm: float = 0.0) -> dict[str, Any]:
    """Return the launcher's DeepSpeed settings with everything filled in that the trainers decide."""
    plugin = accelerator.deepspeed_plugin
    config = _without_auto(copy.deepcopy(plugin.deepspeed_config))
    config.pop("train_batch_size", None)
    return config | {
        "train_micro_batch_size_per_gpu": 1,  # of no meaning here: losses are sums, divided by global counts
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm if math.isfinite(max_grad_norm) else 0.0,  # 0 is off
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **({"bf16": {"enabled": True, "check_grad_overflow": True}} if _is_bf16(config) else {}),
    }


def _is_bf16(config: Mapping[str, Any]) -> bool:
    return bool(config.get("bf16", {}).get("enabled"))


def _without_auto(values: dict[str, Any]) -> dict[str, Any]:
    """Drop entries that are left to the launcher: DeepSpeed's own defaults count then."""
    kept = {k: _without_auto(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in kept.items() if v != "auto"}


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
