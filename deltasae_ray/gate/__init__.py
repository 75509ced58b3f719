"""May an adapter be released: rules of a policy over the figures of a finished study, and the evidence."""
