"""The price of a policy in every measure."""

import copy
from os import PathLike
from pathlib import Path
from typing import Literal

from torch import nn

from bench.compression.function_check import check_function
from bench.compression.policy import Policy, load_policy, uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.breakdown import CostBreakdown, breakdown
from bench.errors import BenchError, printable
from bench.models.normal_form import normal_form
from bench.planning.networks import model_shape
from bench.plugins.entry_points import is_own
from bench.spec.schema import AcceleratorSpec

DEFAULT_DATASET = "cifar100"


def price(
    model: str | nn.Module | NetworkShape,
    policy: Policy | int | str | PathLike[str],
    *,
    dataset: str = DEFAULT_DATASET,
    image_shape: tuple[int, int, int] | None = None,
    image_size: int | None = None,
    data_dir: str | PathLike[str] | None = None,
    hardware: str = "bf_e",
    batch: int | None = None,
    depthwise: Literal["dense", "channelwise"] = "dense",
) -> CostBreakdown:
    """Price a policy layer by layer: operations, memory, and latency and energy on a simulated accelerator.

    `price("resnet20", 4).total("bops")` is the number of bit operations for one image; `.frame` has one row a layer.

    Args:
        model: Name of a model, "package.module:function", a module of PyTorch, or shapes that are known already.
        policy: Policy, path of a file with one, or the bits of a uniform policy, 1 to 32.
        dataset: Name of the data set, which gives the size of images and the number of classes of a named model.
        image_shape: Channels, height and width of one image, for a module of PyTorch.
        image_size: Side of the images in pixels, for data sets of image files.
        data_dir: Folder of data sets.
        hardware: Name of an accelerator, a TOML file with one, or a JSON file with measured times of layers.
        batch: Images that are computed together; 16 by default, and 1 for measured times.
        depthwise: Mapping of depthwise convolutions to the accelerator.

    Raises:
        BenchError: A name is unknown, the network cannot be compressed, or the policy does not fit it.
    """
    folder = None if data_dir is None else Path(data_dir)
    if isinstance(model, nn.Module):
        network = _traced(model, image_shape)
    elif isinstance(model, NetworkShape):
        network = model
    else:
        network = network_of(model, dataset, image_size=image_size, data_dir=folder)
    if isinstance(policy, int):
        policy = uniform(network, policy)
    elif isinstance(policy, str | PathLike):
        policy = load_policy(Path(policy))
    elif not isinstance(policy, Policy):
        raise BenchError(
            f"the policy is {printable(repr(policy))}; give a Policy, the path of a file with one, or bits from 1 to 32"
        )
    together = {} if batch is None else {"batch": batch}
    accelerator = AcceleratorSpec(hardware=hardware, depthwise=depthwise, **together)
    return breakdown(accelerator, network, policy)


def network_of(
    model: str, dataset: str, *, image_size: int | None = None, data_dir: Path | None = None
) -> NetworkShape:
    """Return the shapes of a named model; a model of a user is checked, as before a study.

    Raises:
        BenchError: A name is unknown, or the network cannot be compressed.
    """
    check = not is_own("models", model)
    return model_shape(model, dataset, image_size=image_size, data_dir=data_dir, check=check)


def _traced(model: nn.Module, image_shape: tuple[int, int, int] | None) -> NetworkShape:
    if image_shape is None:
        raise BenchError("a module needs the shape of its images: image_shape=(channels, height, width)")
    name = type(model).__name__
    normal = normal_form(copy.deepcopy(model), name)
    network = trace(normal, image_shape, name=name, dataset="images")
    check_function(normal, network, image_shape)
    return network
