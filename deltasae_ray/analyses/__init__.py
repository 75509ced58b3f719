"""Questions asked of a harvest and its dictionaries, a folder each; their table and the verdict."""
