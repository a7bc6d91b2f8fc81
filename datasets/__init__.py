"""Data sets, one file each, found by `bench` through the entry-point group `bench.datasets`."""
