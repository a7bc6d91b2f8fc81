"""Failures of a network's forward pass, told in one line: which model, which image, which layer, and where."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from bench.errors import BenchError, ForeignCodeError, described


@contextmanager
def told_in_one_line(model: nn.Module, name: str, image: tuple[int, int, int]) -> Iterator[None]:
    """Turn any exception of a network's forward pass, during a `with` block, into a `BenchError`.

    Args:
        model: Network.
        name: Name of the model.
        image: Channels, height and width of one image.

    Raises:
        BenchError: The forward pass raised an exception.
    """
    entered: list[str] = []
    hooks = [module.register_forward_pre_hook(_entering(entered, path)) for path, module in model.named_modules()]
    hooks += [module.register_forward_hook(_leaving(entered)) for module in model.modules()]
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        layer = entered[-1] if entered else ""
        words = f" in layer '{layer}' ({type(model.get_submodule(layer)).__name__})" if layer else ""
        raise ForeignCodeError(
            f"model '{name}' cannot compute an image of {image[1]}×{image[2]} pixels and {image[0]} channels: it "
            f"fails{words} with {described(error)}; give a model for this size, or larger images where the data set "
            "allows it, e.g. --set task.image_size=64"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _entering(entered: list[str], path: str) -> Any:
    def enter(_: nn.Module, __: Any) -> None:
        entered.append(path)

    return enter


def _leaving(entered: list[str]) -> Any:
    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        entered.pop()

    return leave
