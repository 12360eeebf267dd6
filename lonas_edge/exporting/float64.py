"""Run a network in float64 with streamed weights: the exact outputs that an export is compared with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lonas_edge.network.modeling import Inputs

Fetch = Callable[[str], torch.Tensor]
Hook = Callable[..., Any]
BLOCK_ELEMENTS = 2**21  # 17 MB in float64


class Float64(TorchFunctionMode):
    """Compute in float64 where a transformers model asks for fp32: norms, rotary tables, softmax.

    `paused` while something else runs inside, such as fetching a weight.
    """

    paused = False

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        return func(*args, **{name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()})

    def outside(self, fetch: Fetch) -> Fetch:
        """Wrap a fetch so that it runs outside of this mode."""

        def paused(name: str) -> torch.Tensor:
            self.paused = True
            try:
                return fetch(name)
            finally:
                self.paused = False

        return paused


def float64_logits(
    model: PreTrainedModel, inputs: Inputs, fetch: Fetch, wanted: Callable[[str], bool] = lambda _: True
) -> torch.Tensor:
    """Compute the outputs of an empty model in float64, its weights streamed; see `model_outputs`."""
    with torch.inference_mode(), Float64() as mode:
        stream_weights(model, mode.outside(fetch), wanted)
        return model_outputs(model(**inputs, use_cache=False), inputs)


def model_outputs(output: Any, inputs: Inputs) -> torch.Tensor:
    """Take what networks are compared by from a model's output.

    Returns:
        Logits [prompts, tokens, vocabulary] or [prompts, classes], or hidden states [prompts, tokens, hidden].
    """
    if "logits" in output:
        logits: torch.Tensor = output.logits
        return logits
    return without_padding(output.last_hidden_state, inputs)


def without_padding(hidden: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Set hidden states [prompts, tokens, hidden] at padding to 0: nothing reads them, and runtimes may differ there."""
    return hidden.where(inputs["attention_mask"][..., None] > 0, hidden.new_zeros(()))


def stream_weights(
    model: PreTrainedModel, fetch: Fetch, wanted: Callable[[str], bool] = lambda _: True, dtype: torch.dtype = torch.float64
) -> None:
    """Let an empty model run: fetch the weights of each module when it is called, and drop them afterwards.

    A forward pass then takes the memory of the largest layer. Embeddings look up in fp32, which is exact, and the
    language-model head is computed in blocks, so that neither is ever whole in float64. Only `wanted` parameters are streamed;
    `fetch` returns them in any float dtype, and the computation is in `dtype`.
    """
    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        empty = {leaf: p for leaf, p in module.named_parameters(recurse=False) if wanted(f"{path}.{leaf}")}
        if not empty:
            continue
        if module is head and type(module) is nn.Linear:
            module.forward = _in_blocks(path, fetch, module.bias is not None, dtype)  # type: ignore[method-assign,assignment]
            continue
        stored = None if isinstance(module, nn.Embedding) else dtype
        module.register_forward_pre_hook(_fill(path, list(empty), fetch, stored))
        module.register_forward_hook(_drop(empty, dtype))


def _fill(path: str, leaves: list[str], fetch: Fetch, dtype: torch.dtype | None) -> Hook:
    def hook(module: nn.Module, _inputs: Any) -> None:
        for leaf in leaves:
            module._parameters[leaf] = nn.Parameter(fetch(f"{path}.{leaf}").to(dtype), requires_grad=False)

    return hook


def _drop(empty: dict[str, nn.Parameter], dtype: torch.dtype) -> Hook:
    def hook(module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        module._parameters.update(empty)
        return output.to(dtype)

    return hook


def _in_blocks(path: str, fetch: Fetch, has_bias: bool, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> torch.Tensor:
        weight = fetch(f"{path}.weight")
        rows = max(1, BLOCK_ELEMENTS // weight.shape[1])
        output = torch.cat([nn.functional.linear(input, block.to(dtype)) for block in torch.split(weight, rows)], dim=-1)
        return output + fetch(f"{path}.bias").to(dtype) if has_bias else output

    return forward
