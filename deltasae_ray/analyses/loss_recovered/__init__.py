"""How much of an adapter's loss change comes back when deltas are patched into the base."""
