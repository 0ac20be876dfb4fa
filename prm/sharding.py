"""A module and its optimiser on one process, DDP, DeepSpeed ZeRO or FSDP2, behind the same few calls.

Trainers know none of these by name. Each model has an engine, a gradient norm and a learning rate of its
own, so two models in one run (actor and critic) need nothing special. Checkpoints hold whole tensors in
torch's own form wherever the model is cut up, so a run resumes under another number of processes or engine.

    trained = prepare(module, optimizer, owner=model, accelerator=accelerator, max_grad_norm=1.0)
    with trained.accumulate(is_last):
        trained.backward(trained(batch) * accelerator.num_processes)   # engines average over processes
    trained.clip()
    trained.step(apply=True)
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.protocols import Stateful

Engine = Literal["plain", "deepspeed", "fsdp2"]


def engine_of(accelerator: Any) -> Engine:
    """Return what carries the models of this run; plain is one process or DDP."""
    if accelerator.distributed_type.value == "DEEPSPEED":
        return "deepspeed"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and accelerator.num_processes > 1:
        return "fsdp2"
    return "plain"


def cuts_parameters(accelerator: Any) -> bool:
    """Whether a process holds parts of the weights only (ZeRO-3, FSDP2)."""
    engine = engine_of(accelerator)
    return engine == "fsdp2" or (engine == "deepspeed" and accelerator.deepspeed_plugin.zero_stage == 3)


def require_whole_weights(accelerator: Any, what: str) -> None:
    """Raise UserError where a process holds parts of the weights only. what: a plural, such as adapters."""
    if cuts_parameters(accelerator):
        raise UserError(
            f"{what} need whole weights on every process: take zero2 or ddp (configs/accelerate) instead of "
            "zero3 and fsdp2"
        )


def compute_dtype(accelerator: Any) -> torch.dtype:
    """Return what forwards run in: bfloat16 in a mixed-precision run, else float32."""
    if engine_of(accelerator) == "deepspeed":
        is_bf16 = accelerator.deepspeed_plugin.deepspeed_config.get("bf16", {}).get("enabled") is True
    else:
        is_bf16 = accelerator.mixed_precision == "bf16"
    return torch.bfloat16 if is_bf16 else torch.float32


def prepare(
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    owner: Stateful,
    accelerator: Any,
    max_grad_norm: float = 0.0,
) -> "Trained":
    """Return the module and its optimiser on this run's engine. `module` itself is changed or wrapped.

    owner: whose `state_dict` says which weights a checkpoint holds, under which names. Without an optimizer
    the module is only read, and cut up where the trained ones are.
    """
    engine = engine_of(accelerator)
    if engine == "plain" or (optimizer is None and not cuts_parameters(accelerator)):
        return Trained(module, optimizer, owner, accelerator, max_grad_norm)
    if engine == "fsdp2":
        return _FSDP2(module, optimizer, owner, accelerator, max_grad_norm)
    from prm.zero import DeepSpeed

    return DeepSpeed(module, optimizer, owner, accelerator, max_grad_norm)


class Trained:
    """One process or DDP."""

    wrapped: Any
    """What is called for a forward: DDP, torch's FSDPModule and DeepSpeed's engine share no type."""
    optimizer: Any
    """Its optimiser as the engine left it; None for a model that is only read."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        owner: Stateful,
        accelerator: Any,
        max_grad_norm: float,
    ) -> None:
        self.module = module
        self.accelerator = accelerator
        self.max_grad_norm = max_grad_norm
        self.parameters = dict(module.named_parameters())
        """Of the bare module, under its own names; tied ones once."""
        names = {id(p): name for name, p in self.parameters.items()}
        self.groups = [
            [names[id(p)] for p in group["params"]] for group in (optimizer.param_groups if optimizer else [])
        ]
        self.weights: Stateful = self._weights(owner)
        """The owner's weights as a checkpoint's part: whole tensors, in the precision they are trained in."""
        self._place(module, optimizer)

    def _weights(self, owner: Stateful) -> Stateful:
        return owner

    def _place(self, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.wrapped, self.optimizer = module, optimizer
        if optimizer is not None:
            self.wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)

    @property
    def model(self) -> nn.Module:
        """The transformers model inside the bare module."""
        model = self.module.model
        assert isinstance(model, nn.Module)
        return model

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.wrapped(*args, **options)

    def accumulate(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one micro-batch: gradients are exchanged in the last one only."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, averaged over processes in the end."""
        self.accelerator.backward(loss)

    def clip(self) -> float:
        """Clip the gradients' global norm; return what it was. DeepSpeed tells it in `step` only: 0 here."""
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), self.max_grad_norm)
        self._norm = float(norm)
        return self._norm

    def step(self, *, apply: bool) -> float:
        """Update the weights unless `apply` is off; drop the gradients; return their norm before clipping.

        Every process must ask for the same. DeepSpeed leaves the weights alone when the norm is not finite.
        """
        if apply:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return self._norm

    def readable(self) -> AbstractContextManager[Any]:
        """Inside, the bare module may be called, the same number of times on every process."""
        return nullcontext()

    def whole_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name in the bare module, whole tensor), one at a time; every process must take all."""
        for name, parameter in self.parameters.items():
            yield name, self._whole(parameter)

    @property
    def moments(self) -> Stateful:
        """The optimiser as a checkpoint's part, in torch's own form with whole tensors."""
        return self.optimizer

    @torch.no_grad()
    def follow(self, leader: "Trained", eta: float) -> None:
        """own <- (1 - eta) own + eta leader, for two modules of one shape."""
        for name, parameter in self.parameters.items():
            own, new = self._local(parameter), self._local(leader.parameters[name])
            own.lerp_(new.to(own.dtype), eta)

    def _local(self, parameter: nn.Parameter) -> Tensor:
        """What this process holds of a parameter."""
        return parameter.data

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach()


class Cut(Trained, ABC):
    """An engine that spreads a model or its optimiser over the processes; all of them call together."""

    def _weights(self, owner: Stateful) -> Stateful:
        return _Weights(self, owner)

    @property
    def moments(self) -> Stateful:
        return _Moments(self)

    def _trained(self, parameter: nn.Parameter) -> Tensor:
        """The parameter, whole, in the precision it is trained in."""
        return self._whole(parameter)

    @abstractmethod
    def _set(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Give a parameter a new value, whole, in the precision it is trained in."""

    @abstractmethod
    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The optimiser's state of a parameter, whole; empty before the first update."""

    @abstractmethod
    def _set_state(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Give the optimiser back what `_state` told, by the parameters' names."""


class _Weights:
    """The weights of a model that is cut up. Stateful; all processes call together."""

    def __init__(self, trained: Cut, owner: Stateful) -> None:
        self.trained = trained
        # Made before anything is cut: a tied weight stands under two keys and is one parameter.
        addresses = {p.data_ptr(): name for name, p in trained.parameters.items()}
        self.names = {key: addresses.get(t.data_ptr(), t) for key, t in owner.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        parameters = self.trained.parameters
        return {
            key: self.trained._trained(parameters[name]).cpu() if isinstance(name, str) else name
            for key, name in self.names.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        done: set[str] = set()
        for key, name in self.names.items():
            if not isinstance(name, str):
                name.copy_(state[key])
            elif name not in done:
                self.trained._set(self.trained.parameters[name], state[key])
                done.add(name)


class _Moments:
    """The optimiser of a model that is cut up, as torch writes that of a whole one. Stateful."""

    def __init__(self, trained: Cut) -> None:
        self.trained = trained

    def state_dict(self) -> dict[str, Any]:
        names = [name for group in self.trained.groups for name in group]
        states = {i: self.trained._state(self.trained.parameters[name]) for i, name in enumerate(names)}
        groups, first = [], 0
        for group, members in zip(self.trained.optimizer.param_groups, self.trained.groups, strict=True):
            settings = {k: v for k, v in group.items() if k in self.trained.optimizer.defaults}
            groups.append(settings | {"params": list(range(first, first + len(members)))})
            first += len(members)
        return {"state": {i: state for i, state in states.items() if state}, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = [name for group in self.trained.groups for name in group]
        for group, saved in zip(self.trained.optimizer.param_groups, state["param_groups"], strict=True):
            group |= {k: v for k, v in saved.items() if k in self.trained.optimizer.defaults}
        self.trained._set_state({names[i]: values for i, values in state["state"].items()})


class _FSDP2(Cut):
    """torch's fully_shard: every layer's weights are cut over all processes, and its parameters DTensors."""

    def _place(self, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        _shard(module, self.accelerator)
        self.wrapped, self.optimizer = module, optimizer
        self.parameters = dict(module.named_parameters())
        for group, names in zip(optimizer.param_groups if optimizer else [], self.groups, strict=True):
            group["params"] = [self.parameters[name] for name in names]

    def accumulate(self, is_last: bool) -> AbstractContextManager[Any]:
        self.wrapped.set_requires_gradient_sync(is_last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip(self) -> float:
        norm: Any = nn.utils.clip_grad_norm_(list(self.parameters.values()), self.max_grad_norm)  # a DTensor
        self._norm = float(norm.full_tensor())
        return self._norm

    def _whole(self, parameter: Any) -> Tensor:
        return parameter.detach().full_tensor()

    @contextmanager
    def readable(self) -> Iterator[None]:
        self.wrapped.unshard()
        yield
        self.wrapped.reshard()

    def _local(self, parameter: Any) -> Tensor:
        return parameter.to_local()

    def follow(self, leader: Trained, eta: float) -> None:
        super().follow(leader, eta)
        # What lies outside the layers stays whole after a forward that no backward follows.
        self.wrapped.reshard()

    def _set(self, parameter: nn.Parameter, value: Tensor) -> None:
        with torch.no_grad():
            parameter.copy_(self._cut(parameter, value))

    def _cut(self, parameter: Any, value: Tensor) -> Tensor:
        from torch.distributed.tensor import distribute_tensor

        device = parameter.to_local().device
        return distribute_tensor(
            value.to(device=device, dtype=parameter.dtype), parameter.device_mesh, parameter.placements
        )

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.optimizer.state.get(parameter, {})
        return {k: (v.full_tensor() if hasattr(v, "full_tensor") else v).cpu() for k, v in state.items()}

    def _set_state(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, values in states.items():
            parameter = self.parameters[name]
            self.optimizer.state[parameter] = {
                key: value.clone() if value.ndim == 0 else self._cut(parameter, value)
                for key, value in values.items()
            }


def _shard(module: nn.Module, accelerator: Any) -> None:
    """Cut a module's weights over all processes, layer by layer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    options: dict[str, Any] = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "offload_policy": OffloadPolicy(),
    }
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true" and accelerator.device.type != "cpu":
        options["offload_policy"] = CPUOffloadPolicy()
    if accelerator.mixed_precision == "bf16":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    layers = {name for m in module.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    for part in module.modules():
        if type(part).__name__ in layers:
            fully_shard(part, **options)
    fully_shard(module, **options)
