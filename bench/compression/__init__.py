"""Compressed networks: the shapes of their layers, their policies, and the quantized networks themselves.

A `NetworkShape` (`shapes`) describes a model. A `Policy` (`policy`) gives each layer bits of weights and of inputs, and
its kept filters. `compress` builds the network of a policy with quantizers (`quantizer`, `kernels`).
"""
