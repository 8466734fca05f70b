"""A model whose weights, gradients and optimiser state are spread over the processes (FSDP2).

Each process holds a part of every weight. A layer is put together when a pass comes to it, and let go after it; the
gradients that a backward pass leaves are summed over the processes, each of which keeps its part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from steepest.errors import UsageError
from steepest.language.models.language_model import LanguageModel
from steepest.language.parallel import processes

T = TypeVar("T")


class Sharded(nn.Module):
    """Passes through a model in parts: ``sharded(function, *arguments)`` calls the function where the model is whole.

    The function may call any parts of the model, and has to be called by all processes alike. What it returns and is
    differentiated goes through the hooks by which gradients are summed.
    """

    def __init__(self, lm: LanguageModel, device: torch.device) -> None:
        """Takes the model apart, in place.

        Raises:    UsageError where this PyTorch is too old
        """
        super().__init__()
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise UsageError(f"PyTorch {torch.__version__} is too old for fsdp here: its FSDP2 cannot sum gradients")
        _ = lm.splits  # found out by a pass through the model, while it is whole
        self.model = lm.model
        mesh = init_device_mesh(device.type, (processes.world_size(),))
        for layer in _layers(lm.model):
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for module in self.modules():
            if isinstance(module, FSDPModule):
                # Sums, not means: losses are divided by what is counted over all processes already.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    # Tensors in parts. All processes have to call these together.

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor put together."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors put together, one after the other, in the main process's memory; the others get none."""
        out: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            full = self.whole(tensor.detach())
            if processes.is_main():
                out[name] = full.cpu()
        return out

    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers as of ``state_dict``, gathered; of tied ones the first only."""
        every = dict(self.model.named_parameters(remove_duplicate=False))
        aliases = every.keys() - dict(self.model.named_parameters()).keys()
        state = self.model.state_dict()
        return self.gathered({name: tensor for name, tensor in state.items() if name not in aliases})

    def like(self, tensor: Tensor, other: Tensor) -> Tensor:
        """A whole tensor, which every process has, in the parts that another one is in."""
        tensor = tensor.to(other.device, other.dtype)
        if not isinstance(other, DTensor):
            return tensor
        return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model, which are put together one after the other; empty where it does not say what they are."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
