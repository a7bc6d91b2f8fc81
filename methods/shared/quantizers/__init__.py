"""Quantizers of methods whose papers bring their own."""
