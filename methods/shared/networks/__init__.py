"""Networks that are searched, one module for each kind."""
