"""Storage and queries of entities: all SQL about entities."""
