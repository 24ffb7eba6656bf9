"""Where the weights of a model lie: shared by two models, offloaded by accelerate, or sharded among processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_relreps.errors import ConfigurationError


ModuleT = TypeVar("ModuleT", bound=nn.Module)

# How weights are split among processes.
ZERO_3 = "DeepSpeed ZeRO-3 has partitioned the weights"
FSDP_1, FSDP_2 = "FSDP version 1 has sharded the weights", "FSDP2 has sharded the weights"
TENSOR_PARALLEL = "tensor parallelism has sharded the weights"
# What accelerate replaces in a model that it has offloaded; the new ones are bound to the model they were put on.
MOVES = ("to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa")


def share_weights(module: ModuleT, *same: Any) -> ModuleT:
    """A copy whose modules are its own and whose tensors are the same: its mode, hooks and settings change alone.

    Args:
        module: What is copied; hooks of accelerate are bound to the copy.
        *same: Other things that the copy holds by reference.
    """
    memo = {id(thing): thing for thing in same}
    for part in module.modules():
        held = [*part.parameters(recurse=False), *part.buffers(recurse=False), *vars(part).values()]
        memo |= {id(tensor): tensor for tensor in held if isinstance(tensor, Tensor)}
        for hook in _hooks_of(part):  # weights that accelerate holds elsewhere
            memo |= {id(held): held for held in vars(hook).values() if isinstance(held, Mapping)}
    return copy.deepcopy(module, memo)


def _hooks_of(module: nn.Module) -> list[Any]:
    """The hooks that accelerate has put on a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def in_memory(module: ModuleT) -> ModuleT:
    """Bring weights that a device map offloaded into memory, so that the module may be moved and trained; in place."""
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import align_module_device, has_offloaded_params

    for part in module.modules():
        if has_offloaded_params(part):
            with align_module_device(part, torch.device("cpu")):
                held = {name: tensor.detach().clone() for name, tensor in _direct_tensors(part)}
            remove_hook_from_module(part)
            for name, tensor in held.items():
                _put(part, name, tensor)
    vars(module).pop("hf_device_map", None)
    for name in MOVES:
        vars(module).pop(name, None)
    return module


def _direct_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    old = getattr(module, name)
    is_weight = isinstance(old, nn.Parameter)
    setattr(module, name, nn.Parameter(tensor, requires_grad=old.requires_grad) if is_weight else tensor)


def is_offloaded(model: nn.Module) -> bool:
    """Whether hooks of accelerate bring weights to their device for each pass."""
    return any(getattr(hook, "offload", False) for part in model.modules() for hook in _hooks_of(part))


def refuse_empty(model: nn.Module, what: str) -> None:
    """Raise `ConfigurationError` if weights lie on the meta device, and nothing brings their values."""
    if is_offloaded(model):
        return
    named = (*model.named_parameters(), *model.named_buffers())
    empty = [name for name, tensor in named if tensor.is_meta]
    if empty:
        raise ConfigurationError(
            f"{len(empty)} weights of {what} lie on the meta device, which holds no values; the first is {empty[0]}. "
            "Load it with its weights: from_pretrained(name). To keep them out of memory, pass device_map='auto' and "
            "offload_folder."
        )


def sharding_of(model: nn.Module) -> str | None:
    """What has split the weights, so that a process holds only a share of them; ``None`` where each has all."""
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        return ZERO_3
    kinds = {type(weight).__name__ for weight in model.parameters()}
    if "FlatParameter" in kinds or any(type(part).__name__ == "FullyShardedDataParallel" for part in model.modules()):
        return FSDP_1
    if sharded_root(model) is not None:
        return FSDP_2
    return TENSOR_PARALLEL if "DTensor" in kinds else None


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only a share of the weights: it cannot encode alone."""
    return sharding_of(model) is not None


def sharded_root(model: nn.Module) -> nn.Module | None:
    """The outermost module whose weights FSDP2 shards: a pass through it gathers them, on all ranks together."""
    for part in model.modules():
        if any(base.__name__ == "FSDPModule" for base in type(part).__mro__):
            return part
    return None


@contextmanager
def gathering(root: nn.Module, function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`function` as a pass through the `sharded_root`: FSDP gathers the weights for it.

    All ranks must call it equally often, as they do with ``forward``.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    holder: Any = root
    holder.pass_of_anchors = function
    register_fsdp_forward_method(root, "pass_of_anchors")
    try:
        yield holder.pass_of_anchors
    finally:
        del holder.pass_of_anchors


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its inputs; weights that were offloaded lie on no device at all."""
    for part in model.modules():
        for hook in _hooks_of(part):
            if getattr(hook, "execution_device", None) is not None:
                return torch.device(hook.execution_device)
    tensor = next((t for t in (*model.parameters(), *model.buffers()) if not t.is_meta), None)
    return torch.device("cpu") if tensor is None else tensor.device
