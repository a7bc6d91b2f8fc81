"""Data sets, one file each. `bench` finds them through the entry-point group `bench.datasets`."""
