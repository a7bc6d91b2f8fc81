"""Forms of ONNX: one module for each, and one for what they share."""
