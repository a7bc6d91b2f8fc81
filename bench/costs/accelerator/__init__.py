"""Models of accelerators: what a layer costs in time and energy when it is executed there."""
