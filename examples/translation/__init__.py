"""A small world that four languages speak of, and the models that translate between them."""
