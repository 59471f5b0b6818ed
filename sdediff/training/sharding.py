"""Weights shared out among processes (fully sharded data parallel, Zhao et al. 2023).

Each process keeps a part of every weight, of its gradient, of the optimiser's moments and of the moving averages. The
blocks of a network, the members of its module lists, are put together one at a time while they run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn


def shard(module: nn.Module, device: torch.device, world: int) -> nn.Module:
    """Share the weights of a module out among all processes, in place.

    Args:
        module: the module, the same in every process.
        device: device of the process; of its kind are those of the others.
        world: number of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh  # slow to import, as are all of these
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    for block in (block for part in reversed(lists) for block in part):  # inner ones first
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    return cast("nn.Module", fully_shard(module, mesh=mesh))


@torch.no_grad()
def gather(whole: nn.Module, module: nn.Module) -> None:
    """Copy the weights of a module whose twin is shared out; every process has to take part."""
    for value, part in zip(whole.state_dict().values(), module.state_dict().values(), strict=True):
        value.copy_(_whole(part))


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return tensors put together by all processes, where they are kept; whole ones as they are."""
    result = {}
    for name, value in tensors.items():
        whole = _whole(value)
        if keep:
            result[name] = whole if whole is value else whole.cpu()
    return result


def shared_like(value: Tensor, reference: Tensor | None) -> Tensor:
    """Return a whole tensor, the same in every process, shared out as another one is."""
    if type(reference) in _WHOLE:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(reference, DTensor):
        return value
    device = reference.to_local().device
    return distribute_tensor(value.to(device), reference.device_mesh, reference.placements, src_data_rank=None)


_WHOLE = (Tensor, nn.Parameter)
"""Types of tensors that are not shared out, known without the import."""


def _whole(value: Tensor) -> Tensor:
    """Return a tensor put together by all processes; a whole one as it is."""
    if type(value) in _WHOLE:
        return value
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value
