"""The command `deltasae`: the jobs of a study, a look at the machine, and a first configuration."""
