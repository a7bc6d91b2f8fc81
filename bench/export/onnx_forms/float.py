"""The float network in ONNX, without quantizers and with normalisations folded in: what measured times compare with."""

from bench.export.graph.operations import Layer, Quantize
from bench.export.onnx_forms.form import OnnxForm


class FloatForm(OnnxForm):
    """Writes a graph in float32, as runtimes execute it fastest."""

    name = "float"

    def quantize(self, operation: Quantize) -> None:
        """Write nothing but the name."""
        self.node("Identity", [self.source(operation)], result=operation.name)

    def operand(self, operation: Quantize) -> str:
        """Return the name of an operand, which is not quantized."""
        return operation.name

    def layer(self, layer: Layer) -> None:
        """Write a layer with its bias."""
        weights = layer.weights * layer.factor[:, None, None, None]
        bias = self.constant(f"{layer.path}.bias", layer.constant)
        if layer.linear:
            weight = self.constant(f"{layer.path}.weight", weights[:, :, 0, 0])
            if len(layer.input_shape) > 1:  # tokens
                turned = self.node("Transpose", [weight], perm=[1, 0])
                self.node("Add", [self.node("MatMul", [self.source(layer), turned]), bias], result=layer.name)
            else:
                self.node("Gemm", [self.source(layer), weight, bias], result=layer.name, transB=1)
        else:
            weight = self.constant(f"{layer.path}.weight", weights)
            self.convolved("Conv", layer, [self.source(layer), weight, bias], layer.name)
