"""Structure of a network: one pass that shows its layers, its graph of operations, and which layers share channels."""
