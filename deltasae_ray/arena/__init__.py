"""A benchmark of methods that read adapters, whose planted behaviours are known."""
