"""The normal form of a network: attention that hides its multiplications is replaced by attention that shows them.

A compressed network replaces modules that compute products. `nn.MultiheadAttention` and torchvision's attention modules
compute theirs inside one function, from weights of modules that are never called. `normal_form` replaces these modules
by those of `bench.models.attention`, which compute the same with the same parameters.
"""

from collections.abc import Callable, Mapping

from torch import nn
from torch.nn.utils import parametrize

from bench.errors import BenchError
from bench.models.attention import CosineWindowAttention, RelativeAttention, SelfAttention, WindowAttention

_Build = Callable[..., nn.Module]

# Keyed by names, so that torchvision is imported only by networks that use it.
_FORMS: Mapping[str, _Build] = {
    "torch.nn.modules.activation.MultiheadAttention": SelfAttention,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": WindowAttention,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": CosineWindowAttention,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": RelativeAttention,
}


def normal_form(model: nn.Module, name: str) -> nn.Module:
    """Replace attention by forms whose multiplications are modules of their own.

    Parameters are the same objects as before, and state of the original form can still be loaded.

    Args:
        model: Network; it is changed.
        name: Name of the model, for messages.

    Returns:
        The network, or its replacement if it is attention itself.

    Raises:
        BenchError: A module is attention of a kind that cannot be replaced.
    """
    found = {path: module for path, module in model.named_modules(remove_duplicate=False) if _is_attention(module)}
    replaced: dict[nn.Module, nn.Module] = {}
    for path, module in found.items():
        if module not in replaced:
            replaced[module] = _explicit(module, path, name)
        if path == "":
            return replaced[module]
        parent, _, key = path.rpartition(".")
        setattr(model.get_submodule(parent), key, replaced[module])
    return model


def _is_attention(module: nn.Module) -> bool:
    return any(_name(kind) in _FORMS for kind in type(module).__mro__)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _explicit(module: nn.Module, path: str, name: str) -> nn.Module:
    """Build the replacement of one module."""
    kind = next(kind for kind in type(module).__mro__ if _name(kind) in _FORMS)
    obstacle = _obstacle(module, kind)
    if obstacle is not None:
        raise BenchError(
            f"layer '{path}' of model '{name}' is a {type(module).__name__} {obstacle}, whose multiplications cannot "
            "be seen; allowed: plain self-attention with the batch first, or linear layers and bench.api.MatMul"
        )
    explicit = _FORMS[_name(kind)](module, path)
    return explicit.train(module.training)


def _obstacle(module: nn.Module, kind: type) -> str | None:
    """Return what a replacement would lose; `None` if it computes the same."""
    if type(module).forward is not kind.forward:  # type: ignore[attr-defined]
        return "with a forward function of its own"
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return "with hooks"
    if any(parametrize.is_parametrized(part) for part in module.modules()):
        return "with parametrized weights"
    if isinstance(module, nn.MultiheadAttention):
        return _obstacle_of_multihead(module)
    return None


def _obstacle_of_multihead(module: nn.MultiheadAttention) -> str | None:
    if not module.batch_first:
        return "that has its batch second (batch_first=False)"
    if not module._qkv_same_embed_dim:
        return "with keys or values of another width (kdim, vdim)"
    if module.bias_k is not None or module.bias_v is not None:
        return "with extra keys (add_bias_kv=True)"
    if module.add_zero_attn:
        return "with a key of zeros (add_zero_attn=True)"
    return None
