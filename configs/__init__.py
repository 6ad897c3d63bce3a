"""One ml_collections file an experiment."""
