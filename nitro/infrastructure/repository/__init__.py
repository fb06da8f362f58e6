"""How an entity is stored and found: all SQL about entities."""
