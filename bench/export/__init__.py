"""Export: networks of runs in forms that run without the harness, checked against the recorded networks."""
