"""Opens base models and adapters, and takes activations at hookpoints."""
