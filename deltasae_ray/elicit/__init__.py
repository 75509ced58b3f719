"""Text that an adapted model writes by itself, with its difference to the base amplified."""
