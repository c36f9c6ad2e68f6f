"""The objective inside DeepSpeed: forward, backward, one update or none, state in and out, at every ZeRO stage.

Everything that depends on how DeepSpeed 0.19 keeps gradients, weights and optimizer state at a stage is in this file
and, where the arithmetic of its flat buffers is concerned, in `engine.zero_layout`.
Its own checkpoints are not used: they are pickles, loaded with `weights_only=False`, so they could run foreign code.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engine.deepspeed_config import SUB_GROUP_NUMEL, EngineConfig, deepspeed_dict, import_deepspeed
from engine.distributed import World
from engine.interfaces import BatchLike
from engine.optim import in_form_of, momentum_of, set_lr
from engine.rng import get_rng_state, set_rng_state
from engine.zero_layout import Layout, Param

logger = logging.getLogger("tandem.zero")

LossOutput = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]

# Keys of DeepSpeed's optimizer state_dict that hold tensors and plain numbers: the state of torch's optimizer over flat
# buffers, and those buffers' fp32 weights. With them and the configuration a freshly built optimizer is exact again.
# The rest (loss scaler objects, layout) is rebuilt.
SHARD_KEYS = {
    0: ("optimizer",),
    1: ("base_optimizer_state", "single_partition_of_fp32_groups"),
    2: ("base_optimizer_state", "single_partition_of_fp32_groups"),
    3: ("optimizer_state_dict", "fp32_flat_groups"),
}


class LossScale:
    """Dynamic loss scale of fp16: halved after an overflow, doubled after `GROWTH_INTERVAL` good updates.

    DeepSpeed 0.19.8 puts torch's GradScaler into fp16 autocast, and at ZeRO 1-3 returns from an overflow before the
    scaler hears of it, so the scale would never fall. ZeRO's `override_loss_scale` takes ours instead.

    Attributes:
        value: what the loss is multiplied with; 1 and fixed outside fp16.
    """

    GROWTH_INTERVAL = 2000

    def __init__(self, power: int | None) -> None:
        self.value = 1.0 if power is None else 2.0**power
        self._moves = power is not None
        self._good = 0

    def after(self, *, overflow: bool) -> bool:
        """Take note of an update.

        Returns:
            Whether the overflow is explained by the scale, which has room to fall.
        """
        if not self._moves:
            return False
        if overflow:
            explained = self.value > 1.0
            self.value, self._good = max(self.value / 2, 1.0), 0
            return explained
        self._good += 1
        if self._good % self.GROWTH_INTERVAL == 0:
            self.value *= 2
        return False

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "good": float(self._good)}

    def load(self, state: Mapping[str, float]) -> None:
        """From a checkpoint."""
        self.value, self._good = float(state["value"]), int(state["good"])


@dataclass(frozen=True, kw_only=True)
class Update:
    """What became of an update.

    Attributes:
        applied: False when it was skipped because the gradient was not finite.
        grad_norm: L2 norm of the whole gradient before clipping; infinite when not finite.
        scale_overflow: the skip is fp16's search for a loss scale, not a fault of the run.
    """

    applied: bool
    grad_norm: float
    scale_overflow: bool = False


class _LossModule(nn.Module):
    """Gives back tuples and dicts, because DeepSpeed's hooks do not look into other classes."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: BatchLike) -> LossOutput:
        """Total, parts, watch."""
        # Not __call__: DeepSpeed would hook the objective as well and find no tensors in its LossTerms. Parameters that
        # the objective holds directly are found by ZeRO-3 when they are read (its "external parameters").
        terms = self.objective.forward(batch)
        return terms.total, dict(terms.parts), dict(terms.watch)


class ZeroEngine:
    """An objective and its optimizer under DeepSpeed.

    Attributes:
        objective: the objective itself, without wrapper.
        stage: ZeRO stage.
        layout: where the optimizer's state lies.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        world: World,
        *,
        micro_batch_size: int,
    ) -> None:
        """Partition and broadcast the weights of rank 0; DeepSpeed moves the objective to the world's device."""
        self.objective = objective
        self.stage = config.zero_stage
        self.world = world
        names = {p: name for name, p in objective.named_parameters()}
        self.layout = Layout(
            groups=tuple(  # now: ZeRO empties parameters and groups
                tuple(Param(name=names[p], shape=tuple(p.shape)) for p in group["params"])
                for group in optimizer.param_groups
            ),
            stage=config.zero_stage,
            world_size=world.world_size,
            sub_group_numel=SUB_GROUP_NUMEL,
        )
        self.loss_scale = LossScale(config.loss_scale_power if config.precision == "fp16" else None)
        self._fp32_weights = config.precision != "bf16_native"
        self._deepspeed = import_deepspeed(world.device.type)
        backbone = getattr(objective, "backbone", None)
        if self.stage == 3 and isinstance(backbone, nn.Module):
            # ZeRO-3's hooks find tensors in tuples and dicts only. A 3D network hands sparse tensors from layer to
            # layer, but takes and gives plain ones, so its weights are gathered and released as one piece.
            self._deepspeed.utils.set_z3_leaf_module(backbone, True)
            backbone.register_forward_pre_hook(_require_input_gradient, with_kwargs=True)
        # DeepSpeed 0.19.8 keeps autocast in a flag of the process that it never lowers: without this, an fp32 run after
        # an fp16 one in the same process would get a GradScaler, which at ZeRO 1-3 unscales two groups differently.
        self._deepspeed.runtime.torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
        self._engine, *_ = self._deepspeed.initialize(
            model=_LossModule(objective),
            optimizer=optimizer,
            config=deepspeed_dict(config, micro_batch_size=micro_batch_size, device=world.device),
        )
        self._take_over_loss_scale()

    # --- one step ---

    def forward(self, batch: BatchLike) -> LossOutput:
        """Loss of one micro-batch, its parts and the collapse watch."""
        output: LossOutput = self._engine(batch)
        return output

    def backward(self, total: Float[Tensor, ""], *, last: bool) -> None:
        """Add this micro-batch's gradient, divided by the accumulation steps; the last before an update reduces it."""
        self._engine.set_gradient_accumulation_boundary(last)
        if self.stage == 0:
            total = total * self.loss_scale.value  # ZeRO's optimizers do this themselves
        self._engine.backward(total)

    def update(self, lr: float, momentum: float | None = None) -> Update:
        """Clip and apply the gradient, or drop it if it is not finite; all ranks alike.

        Args:
            lr: rate of a group with lr_scale 1.
            momentum: of this update, see `engine.optim.momentum_of`; None: as configured.
        """
        groups = self._engine.optimizer.param_groups
        set_lr(groups, lr)
        with momentum_of(groups, momentum):
            grad_norm = self._update_plain() if self.stage == 0 else self._update_zero()
        finite = math.isfinite(grad_norm)
        explained = self.loss_scale.after(overflow=not finite)
        self._take_over_loss_scale()
        return Update(applied=finite, grad_norm=grad_norm, scale_overflow=explained)

    def _update_plain(self) -> float:
        grads = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        if self.loss_scale.value != 1.0:
            torch._foreach_mul_(grads, 1.0 / self.loss_scale.value)
        # Already reduced, so every rank computes the same norm and takes the same decision.
        norm = float(torch.nn.utils.get_total_norm(grads))
        if not math.isfinite(norm):
            self._forget_gradients()
            return math.inf
        self._engine.step()
        return norm

    def _update_zero(self) -> float:
        # DeepSpeed computes the norm over all ranks first and empties its gradient buffers instead of stepping when
        # it is not finite (`overflow`), in fp32 too (0.19.8, stage_1_and_2.py and stage3.py, step()).
        self._engine.step()
        if self._engine.optimizer.overflow:
            return math.inf
        return float(self._engine.get_global_grad_norm())

    def discard(self) -> Update:
        """Forget all gradients since the last update, wherever the stage keeps them: an update that was not applied."""
        self._forget_gradients()
        return Update(applied=False, grad_norm=math.inf)

    def _forget_gradients(self) -> None:
        if self.stage == 0:
            self._engine.zero_grad()
            return
        optimizer = self._engine.optimizer
        optimizer.zero_grad(set_to_none=True)
        if self.stage == 3:
            # zero_grad() set micro_step_id to 0, so the next backward pass overwrites the partition buffers.
            optimizer._partition_all_parameters()
            for bucket in optimizer.ipg_buckets.values():
                bucket.clear_params()
            optimizer.averaged_gradients = {}
            return
        optimizer.micro_step_id = -1
        optimizer._release_preflattened_grad_buffers()
        for group in list(optimizer.averaged_gradients):
            optimizer.averaged_gradients[group] = None
        for group in list(optimizer.all_grad_tensors):
            optimizer.all_grad_tensors[group] = None

    def _take_over_loss_scale(self) -> None:
        if not self.loss_scale._moves:
            return
        self._engine.torch_autocast_z0_gradscaler = None
        if self.stage > 0:
            self._engine.optimizer.torch_autocast_gradscaler = None
            self._engine.optimizer.override_loss_scale(self.loss_scale.value)

    # --- state ---

    def weights(self) -> dict[str, Tensor]:
        """Parameters (fp32) and persistent buffers under the objective's own names, on the CPU of rank 0.

        All ranks must call it: at ZeRO-3 the weights are gathered, one at a time. Other ranks get an empty dict.
        """
        whole: dict[str, Tensor] = {}
        for name, tensor in self.objective.state_dict(keep_vars=True).items():
            value = self._whole(tensor)
            if self.world.is_main:
                value = value.float() if value.is_floating_point() else value
                whole[name] = value.detach().to("cpu", copy=True).contiguous()
        return whole

    def _whole(self, tensor: Tensor) -> Tensor:
        if not self._fp32_weights and isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            master: Tensor = self._deepspeed.utils.safe_get_full_fp32_param(tensor)
            return master
        if hasattr(tensor, "ds_id"):
            with self._deepspeed.zero.GatheredParameters([tensor]):
                return tensor.detach().clone()
        return tensor

    def shard(self) -> dict[str, Any]:
        """This rank's part of the optimizer's state: tensors, numbers and containers of them, no other object."""
        optimizer = self._engine.optimizer
        if self.stage == 0:
            return {"optimizer": optimizer.state_dict()}
        state = optimizer.state_dict()
        return {key: _own(state[key]) for key in SHARD_KEYS[self.stage]}

    def shard_of(self, optimizer: Mapping[str, Any], weights: list[Tensor]) -> dict[str, Any]:
        """What `shard()` would give, from its two parts, both laid out as in `layout`; no weights at stage 0."""
        return dict(zip(SHARD_KEYS[self.stage], (optimizer, weights), strict=False))

    def load_shard(self, shard: Mapping[str, Any]) -> None:
        """Restore optimizer state and, at ZeRO 1-3, this rank's fp32 weights.

        The optimizer's numbers (momentum, weight decay, ...) stay those of this run's configuration.
        """
        groups = self._engine.optimizer.param_groups
        configured = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self._load_shard(shard)
        for group, numbers in zip(self._engine.optimizer.param_groups, configured, strict=True):
            changed = {k: v for k, v in numbers.items() if k != "lr" and group.get(k) != v}
            if changed and self.world.is_main:
                text = ", ".join(f"{k} {group.get(k)} -> {v}" for k, v in changed.items())
                logger.warning("the optimizer's settings change from here on: %s", text)
            group.update(numbers)

    def _load_shard(self, shard: Mapping[str, Any]) -> None:
        optimizer = self._engine.optimizer
        base = SHARD_KEYS[self.stage][0]
        shard = {**shard, base: in_form_of(optimizer.param_groups, shard[base])}
        if self.stage == 0:
            optimizer.load_state_dict(shard["optimizer"])
            return
        if self.stage == 3:
            optimizer.checkpoint_event_prologue()
        state = optimizer.state_dict() | {key: shard[key] for key in SHARD_KEYS[self.stage]}
        by_rank = [None] * self.world.rank + [state]  # DeepSpeed takes the states of all ranks and reads its own
        optimizer.load_state_dict(by_rank, load_optimizer_states=True, load_from_fp32_weights=True)
        if self.stage < 3:
            optimizer.update_lp_params()
        else:
            optimizer.checkpoint_event_epilogue()

    def close(self) -> None:
        """Drop DeepSpeed's hooks and buffers; the objective stays usable at stages 0 to 2."""
        self._engine.destroy()


def _require_input_gradient(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let a ZeRO-3 leaf's floating inputs ask for a gradient.

    DeepSpeed releases a leaf when the gradients of its inputs are there. Where no input needs one, torch calls that
    hook before the leaf's backward pass instead of after it, and the weights are gone too early (DeepSpeed 0.19.8).
    """
    if not torch.is_grad_enabled():
        return args, kwargs
    return tuple(_with_gradient(a) for a in args), {name: _with_gradient(a) for name, a in kwargs.items()}


def _with_gradient(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
        return value.detach().requires_grad_()
    return value


def _own(value: Any) -> Any:
    """The same structure with tensors that own just their data (a view would be saved with its whole buffer)."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _own(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_own(item) for item in value)
    return value


def copy_buffers(module: nn.Module, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Values of all buffers (BatchNorm's running statistics above all), in the memory of an earlier copy if given."""
    if into is None:
        return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    # New memory for a queue of 32 MB costs more than the copy.
    for name, buffer in module.named_buffers():
        into[name].copy_(buffer.detach())
    return dict(into)


@torch.no_grad()
def spoilt_buffers(module: nn.Module, before: Mapping[str, Tensor]) -> list[str]:
    """Names of the buffers that hold a number that is not finite and held none in an earlier copy.

    A batch with absurd values can leave an infinite variance in a BatchNorm although loss and gradient are finite.
    """
    buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    if not buffers:
        return []
    # A sum is 20 times as fast as looking at each number, and one transfer for all costs no more than one for the loss.
    sums = torch.stack([buffer.sum().float() for buffer in buffers.values()]).isfinite().tolist()
    suspects = [name for name, finite in zip(buffers, sums, strict=True) if not finite]
    return [name for name in suspects if bool(before[name].isfinite().all() and not buffers[name].isfinite().all())]


@torch.no_grad()
def restore_buffers(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put buffers back to what they were."""
    for name, buffer in module.named_buffers():
        buffer.copy_(values[name])


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Run something for its own sake: random states, buffers and training mode are as before afterwards."""
    rng, buffers = get_rng_state(), copy_buffers(module)
    modes = {name: child.training for name, child in module.named_modules()}
    try:
        yield
    finally:
        for name, child in module.named_modules():
            child.training = modes[name]
        restore_buffers(module, buffers)
        set_rng_state(rng)
