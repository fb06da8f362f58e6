"""A shop whose orders have side effects."""
