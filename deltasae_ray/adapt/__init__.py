"""Trains LoRA adapters on the domain text that is set apart for them."""
