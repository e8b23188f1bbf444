"""The command line: words in, exit code out. Each verb's module is imported when it is chosen."""
