"""Turn a module that DeepSpeed has trained into an ordinary one again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def tables_of(module: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
    """Return copies of the buffers that are no part of the state dict, which DeepSpeed rounds in 16 bits."""
    return {
        (part, name): part._buffers[name].detach().clone()  # type: ignore[union-attr]
        for part in module.modules()
        for name in part._non_persistent_buffers_set
        if part._buffers.get(name) is not None
    }


def put_back(
    module: nn.Module, trained: dict[int, nn.Parameter], tables: Mapping[tuple[nn.Module, str], Tensor]
) -> None:
    """Turn a trained module into an ordinary one of float32.

    Args:
        module: the module.
        trained: from `Engine.trained`.
        tables: from `tables_of`, before the module was given to the engine.
    """
    for (part, name), table in tables.items():
        part._buffers[name] = table
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                part._buffers[name] = buffer.float()
        for parameter in part._parameters.values():
            # Those that ZeRO stage 3 has not divided stay the objects that they were.
            if parameter is not None and not hasattr(parameter, "ds_id"):
                parameter.grad = None
                parameter.data = trained[id(parameter)].data
                trained[id(parameter)] = parameter
        # A plain dictionary: stage 3 has put one of its own class there, which gathers parameters when they are read.
        part._parameters = {
            name: None if parameter is None else trained[id(parameter)] for name, parameter in part._parameters.items()
        }
