"""How far delta dictionaries lie from the reference, each figure with its null."""
