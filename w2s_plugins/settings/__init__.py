"""What a command can be told: a flag is a typed field of its concern, with its help, range and rules beside it."""
