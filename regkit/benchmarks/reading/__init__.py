"""How many clips a second one process reads, against other ways of reading."""
