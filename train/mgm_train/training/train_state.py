"""The state of a training: model, optimizer and EMA, on one device or many; forward, backward, step.

Several processes hold copies that exchange gradients (DDP), or shards of one model (FSDP2, `fsdp`). Checkpoints always
hold whole tensors: a run can continue in the other mode and with another number of processes.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm

from mgm_shared.errors import UserError
from mgm_train.config import TrainConfig
from mgm_train.models.action_detector import TrainedModel
from mgm_train.models.attention import Block
from mgm_train.models.cross_attention import CrossBlock
from mgm_train.models.divided_attention import DividedBlock
from mgm_train.models.videomae import VideoMAE
from mgm_train.runtime.distributed import Distributed, autocast_dtype, is_compiled
from mgm_train.training.optim import make_optimizer, set_rate


class Learner:
    """A model in training. All processes must call its methods together.

    `state` is what `state()` of an earlier run returned. It holds whole tensors, from any number of processes.
    """

    def __init__(
        self,
        model: TrainedModel,
        config: TrainConfig,
        distributed: Distributed,
        layer_decay: float | None,
        state: Mapping[str, Any] | None,
    ) -> None:
        self.config, self.distributed = config, distributed
        self.dtype = autocast_dtype(config.precision, distributed.device)
        self.is_compiled = is_compiled(config.compile, config.device)
        self.model = model.to(distributed.device)
        self.model.set_grad_checkpointing(config.grad_checkpointing)
        # Without warm-up, a decay of 0.9999 leaves a third of the initial weights in the average after 10,000 steps.
        self.ema = ModelEmaV3(self.model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        self.is_sharded = config.fsdp and distributed.world_size > 1
        self.grad_norm: Tensor | None = None
        if self.is_sharded and self.dtype is torch.float16:
            raise UserError("this GPU would compute in float16, which fsdp does not do; set precision to fp32")
        # Gradients below 6e-8 are 0 in float16: the loss is scaled up, the gradients down again before the step.
        self.scaler = GradScaler(distributed.device.type, enabled=self.dtype is torch.float16)
        # Weights are loaded before the model is sharded, the moments of the optimizer after.
        if state is not None:
            self.model.load_state_dict(state["model"])
        if state is not None and self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.parallel_model = self._spread()
        self.optimizer = make_optimizer(self.model, config, layer_decay)
        if state is not None:
            self._load_moments(state["optimizer"])
            self.scaler.load_state_dict(state.get("scaler") or self.scaler.state_dict())

    @property
    def scored_model(self) -> nn.Module:
        """The model that is saved and tested: the EMA if there is one, otherwise the model itself."""
        return self.model if self.ema is None else self.ema.module

    def _spread(self) -> nn.Module:
        """Wrap the model with FSDP2 or DDP, optionally compiled."""
        if self.is_sharded:
            self._shard()
            return self.model
        model: nn.Module = self.model
        if self.distributed.world_size > 1:
            devices = [self.distributed.device] if self.distributed.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
            # The only buffers are position tables, which are equal on all processes and never change. The attribute,
            # because the argument's name depends on the version of torch.
            model.broadcast_buffers = False
        if not self.is_compiled:
            return model
        # All batches of a run have the same shape.
        return torch.compile(model, dynamic=False, mode=self.config.compile_mode)  # type: ignore[return-value]

    def _shard(self) -> None:
        """Shard each block on its own, so that a process gathers one block at a time, and then the rest."""
        mesh = init_device_mesh(self.distributed.device.type, (self.distributed.world_size,))
        # Half the bytes are gathered; shards, gradients and their sums stay float32. Autocast casts the inputs.
        halved = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for model in filter(None, (self.model, self.ema and self.ema.module)):
            policy = halved if model is self.model and self.dtype is not None else MixedPrecisionPolicy()
            for block in [
                module for module in model.modules() if isinstance(module, Block | CrossBlock | DividedBlock)
            ]:
                if self.is_compiled and model is self.model:
                    block.compile(dynamic=False)
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(model, mesh=mesh, mp_policy=policy)

    def fit_clips(self, num_frames: int, image_px: int) -> None:
        """Make a pretraining model take clips of this size; with a schedule they change between two epochs."""
        if isinstance(self.model, VideoMAE) and self.model.clip_size != (num_frames, image_px):
            self.model.fit_clips(num_frames, image_px)

    def _load_moments(self, state: Mapping[str, Any]) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        of_parameter = {
            number: {name: _share(value, parameters[number]) for name, value in moments.items()}
            for number, moments in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": of_parameter})

    def forward_backward(self, objective: Callable[[nn.Module], Tensor], micro_step: int) -> Tensor:
        """Forward and backward pass of a micro-step; returns its loss."""
        device_type = self.distributed.device.type
        if self.is_compiled and self.config.compile_mode == "reduce-overhead":
            # CUDA graphs write into the same memory again: what the last pass returned is not needed any more.
            torch.compiler.cudagraph_mark_step_begin()
        with self._exchange(is_last=micro_step == self.config.grad_accum_steps - 1):
            with torch.autocast(device_type, dtype=self.dtype, enabled=self.dtype is not None):
                loss = objective(self.parallel_model)
            self.scaler.scale(loss / self.config.grad_accum_steps).backward()
        return loss.detach()

    def _exchange(self, is_last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between processes in the last micro-step only."""
        if self.is_sharded:
            self.model.set_requires_gradient_sync(is_last)  # type: ignore[operator]
        elif self.distributed.world_size > 1 and not is_last:
            unsynchronized: AbstractContextManager[None] = self.parallel_model.no_sync()  # type: ignore[operator]
            return unsynchronized
        return nullcontext()

    def step(self, rate: float, step: int, is_norm_wanted: bool) -> None:
        """Clip the gradients, then update the weights and their EMA.

        `step` is the number of this update, counted from 1. The EMA's decay at update n is the smaller of `ema_decay`
        and 1 − n^(−2/3), timm's warm-up. `grad_norm` becomes the norm before clipping, still on the device.
        """
        set_rate(self.optimizer, rate)
        # Without scaling these three do nothing but step.
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        if self.config.clip_grad:
            self.grad_norm = _whole(clip_grad_norm_(parameters, self.config.clip_grad))
        elif is_norm_wanted:
            self.grad_norm = _whole(get_total_norm([parameter.grad for parameter in parameters]))  # type: ignore[misc]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model, step=step)

    def is_finite(self) -> bool:
        """Whether weights, EMA and the optimizer's moments hold neither NaN nor infinity, on any process.

        It waits for the device.
        """
        moments = [value for of_parameter in self.optimizer.state.values() for value in of_parameter.values()]
        tensors = [*self.model.parameters(), *self.scored_model.parameters(), *moments]
        local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        # The optimizer counts steps in tensors without axes, which may lie on the CPU.
        flags = [tensor.isfinite().all() for tensor in local if tensor.dim()]
        return not self.distributed.any(not torch.stack(flags).all())

    def state(self) -> dict[str, Any]:
        """Everything needed to continue, as whole tensors on the CPU; complete on the main process only."""
        modules = {"model": self.model} | ({"ema": self.ema.module} if self.ema else {})
        state = {name: module.state_dict() for name, module in modules.items()}
        gathered: dict[str, Any] = self._gathered(state | {"optimizer": self.optimizer.state_dict()})
        return gathered | ({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {})

    def weights(self) -> dict[str, Tensor]:
        """The weights of the scored model, whole and on the CPU; complete on the main process only."""
        weights: dict[str, Tensor] = self._gathered(self.scored_model.state_dict())
        return weights

    def _gathered(self, values: Any) -> Any:
        if isinstance(values, dict):
            return {name: self._gathered(value) for name, value in values.items()}
        if isinstance(values, Tensor):
            # One tensor at a time is gathered on every process; only the main process keeps them.
            tensor = _whole(values.detach())
            return tensor.cpu() if self.distributed.is_main else None
        return values


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _share(value: Any, parameter: Tensor) -> Any:
    """The shard of an optimizer tensor for this process, sharded like its parameter."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
