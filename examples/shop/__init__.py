"""An example shop: placed orders have side effects."""
