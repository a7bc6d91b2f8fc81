"""What a network's modules must be like, so that a compressed network can be built from them."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from bench.compression.geometry import has_own_forward
from bench.errors import BenchError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OLD_PARAMETRISATIONS = {
    ("weight_g", "weight_v"): "torch.nn.utils.remove_weight_norm(layer)",
    ("weight_orig", "weight_u"): "torch.nn.utils.remove_spectral_norm(layer)",
    ("weight_orig", "weight_mask"): "torch.nn.utils.prune.remove(layer, 'weight')",
    ("bias_orig", "bias_mask"): "torch.nn.utils.prune.remove(layer, 'bias')",
}
"""Tensors that show how PyTorch's older functions compute a parameter, with the call that ends it."""

Layer = nn.Conv2d | nn.Linear


def check_modules(model: nn.Module, name: str) -> None:
    """Check every module of a network before it is executed.

    Args:
        model: Network.
        name: Name of the model, for messages.

    Raises:
        BenchError: A layer has no shape yet, computes its weight from other tensors, has hooks, a forward pass set on
            the object, or more parameters than a convolution; two modules have one parameter; a layer of PyTorch that
            is neither a convolution nor linear has weights; or no parameter is trained.
    """
    trained = [parameter.requires_grad for parameter in model.parameters()]
    if trained and not any(trained):
        raise BenchError(f"model '{name}' has no parameter to train: all have requires_grad=False")
    owners: dict[nn.Parameter, tuple[str, str]] = {}
    for path, module in model.named_modules():
        where = f"layer '{path}' of model '{name}'"
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise BenchError(f"{where} is lazy and has no shape yet: call the model once on an image where it is made")
        if isinstance(module, Layer | nn.BatchNorm2d):
            _check_layer(module, where)
        else:
            _check_known(module, where)
        if isinstance(module, Layer):
            _check_own(module, where)
        for key, parameter in module.named_parameters(recurse=False):
            other, name_there = owners.setdefault(parameter, (path, key))
            if other != path:
                raise BenchError(
                    f"{where} has the parameter '{name_there}' of '{other}'; each module must have its own parameters"
                )


def _check_layer(module: nn.Module, where: str) -> None:
    """Check that a layer or normalisation is no more than its class says."""
    undo = _undo(module)
    if undo is not None:
        raise BenchError(f"{where} computes its parameters from other tensors: end that with {undo}")
    if any(getattr(module, hooks) for hooks in _HOOKS):
        raise BenchError(f"{where} has hooks, which a quantized layer would lose: remove them where the model is made")
    if "forward" in vars(module):
        raise BenchError(f"{where} has a forward function set on the object: make it a method of a subclass")


def _undo(module: nn.Module) -> str | None:
    """Return the call that makes computed parameters plain ones; `None` when they are."""
    if is_parametrized(module):
        tensor = next(iter(module.parametrizations))  # type: ignore[arg-type]
        return f"torch.nn.utils.parametrize.remove_parametrizations(layer, '{tensor}')"
    tensors = {*module._parameters, *module._buffers}
    return next((undo for names, undo in _OLD_PARAMETRISATIONS.items() if tensors.issuperset(names)), None)


def _check_own(module: Layer, where: str) -> None:
    """Check that a layer computes from one weight and one bias only."""
    if not has_own_forward(module):
        return
    further = [key for key, _ in (*module.named_parameters(), *module.named_buffers()) if key not in ("weight", "bias")]
    further += [key for key, _ in module.named_children()]
    if further:
        raise BenchError(
            f"{where} is a {type(module).__name__} with a forward of its own that may use '{further[0]}' besides "
            "weight and bias: make that a module of its own"
        )


def _check_known(module: nn.Module, where: str) -> None:
    """Check that PyTorch's other layers have no weights. In a module of the user's, operations are counted."""
    of_pytorch = type(module).__module__.startswith("torch.nn")
    if of_pytorch and any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
        raise BenchError(
            f"{where} is a {type(module).__name__}, whose cost is not known; "
            "allowed with weights: Conv2d, Linear and normalisations"
        )


def check_logits(outputs: object, images: int, classes: int | None, name: str) -> None:
    """Check what a network returns.

    Args:
        outputs: Result of the forward pass.
        images: Number of images in the batch.
        classes: Number of classes; any by default.
        name: Name of the model, for messages.

    Raises:
        BenchError: It is no tensor, or not of the shape (images, classes).
    """
    if not isinstance(outputs, torch.Tensor):
        raise BenchError(f"model '{name}' returns a {type(outputs).__name__}; it must return the logits, one tensor")
    wanted = (images, *outputs.shape[1:]) if classes is None else (images, classes)
    if tuple(outputs.shape) != wanted:
        raise BenchError(
            f"model '{name}' returns a tensor of shape {tuple(outputs.shape)} for {images} images; it must return "
            f"logits of shape ({images}, {classes or 'classes'})"
        )


def check_executions(name: str, paths: Sequence[str], weighted: int) -> None:
    """Check that each layer runs once, and that there are two layers at least.

    Args:
        name: Name of the model, for messages.
        paths: Paths of the layers and products in the order of execution.
        weighted: Number of layers among them.

    Raises:
        BenchError: A layer runs twice, or there are too few.
    """
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise BenchError(f"model '{name}' runs layer '{twice[0]}' more than once; give each call a layer of its own")
    if weighted < 2:
        raise BenchError(f"model '{name}' must run at least two convolution or linear layers; it runs {weighted}")
