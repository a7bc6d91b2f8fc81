"""What may be removed from a store, which processes and studies still need it, and its removal."""
