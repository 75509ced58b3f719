"""Methods of the arena, a file each."""
