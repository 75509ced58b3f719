"""Whether monitors of the base model still work on the adapted one."""
