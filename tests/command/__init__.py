"""The command, as a user types it."""
