"""Fine-tuning: the compressed network of a policy, and its training with the policy fixed."""

from torch import nn

from bench.compression.compress import calibrate, compress, reduce, restore_state
from bench.compression.policy import Policy
from bench.compression.quantizer import QuantizerFactory, UniformQuantizer
from bench.compression.shapes import NetworkShape, trace
from bench.execution.context import UnitContext
from bench.execution.stages.search import MatchedSearch
from bench.execution.task_loader import on_device
from bench.method import Method
from bench.spec.schema import FinetuneSchedule, StudySpec
from bench.spec.seeds import derive, generator, start_process_deterministically
from bench.training.loop import fit, reestimate_norms


def compressed_network(context: UnitContext, method: Method, matched: MatchedSearch) -> nn.Module:
    """Build the compressed network of a search, ready for fine-tuning.

    It starts the process anew, since an interrupted run that continues here has made no search in its process.

    Raises:
        KeyError: The method named parameters of quantizers that the network does not have.
    """
    spec, task = context.spec, context.task
    start_process_deterministically(derive("prepare", context.unit.seed), spec.threads)
    model = task.make_model()
    restore_state(model, matched.result.state)
    own = spec.recipe == "own"
    network = compress(
        model,
        task.network,
        matched.policy,
        clips=matched.result.clips,
        quantizer=quantizer_of(spec, method),
        normalized_weights=matched.result.normalized_weights,
    )
    network = on_device(network, context.device)
    if spec.finetune.calibrate or not matched.result.clips:
        calibrate(network, task.data.calibration_batches(1, spec.finetune.batch_size)[0])
    if own and not spec.finetune.calibrate:
        unknown = network.load_state_dict(matched.kept_quantizers(), strict=False).unexpected_keys
        if unknown:
            raise KeyError(f"{type(method).__name__} names parameters of quantizers that the network lacks: {unknown}")
    # Standardised weights scale every convolution's output; a short fine-tuning would not forget the old statistics.
    reestimate_norms(network, task.data, spec.finetune.batch_size)
    return network


def quantizer_of(spec: StudySpec, method: Method) -> QuantizerFactory:
    """Return the quantizer of a study's compressed networks: the common one, or the method's own."""
    return method.quantizer if spec.recipe == "own" else UniformQuantizer


def quantizer_name(quantizer: QuantizerFactory) -> str:
    """Return the name of a quantizer in records, e.g. "bench.compression.quantizer.UniformQuantizer"."""
    named = quantizer if hasattr(quantizer, "__qualname__") else type(quantizer)
    return f"{named.__module__}.{named.__qualname__}"


def finetune(context: UnitContext, network: nn.Module, schedule: FinetuneSchedule, updates: int | None = None) -> None:
    """Train a compressed network.

    Args:
        context: Context of the run or trial.
        network: The compressed network; it is changed.
        schedule: Schedule of the training.
        updates: Number of updates; that of the schedule by default.
    """
    seed = context.unit.seed
    start_process_deterministically(derive("finetune", seed), context.spec.threads)
    order = generator("order", "finetune", seed)
    with context.phase("finetune"):
        report, stage = context.curves.reporter("finetune"), context.checkpoints.stage("finetune")
        call = context.forward.prepare(network, "fine-tuning", context.task.multiplications(schedule))
        fit(network, context.task.data, schedule, order, report, stage, call, updates)


def reduced_form(
    network: NetworkShape, model: nn.Module, policy: Policy, input_shape: tuple[int, int, int]
) -> tuple[NetworkShape, Policy]:
    """Return the shapes of the physically reduced network and the bits of its layers, for its final costs.

    Args:
        network: Shapes of the full model.
        model: Full float model.
        policy: Policy to apply.
        input_shape: Channels, height and width of an image.
    """
    reduced = trace(reduce(model, network, policy), input_shape, name=network.model, dataset=network.dataset)
    layers = {
        name: type(layer)(weight_bits=layer.weight_bits, activation_bits=layer.activation_bits)
        for name, layer in policy.layers.items()
    }
    return reduced, Policy(model=policy.model, dataset=policy.dataset, layers=layers)
