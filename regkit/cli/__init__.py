"""The command line: words in, exit code out. Each verb's module is imported when it is chosen.

Never: work of its own; a verb reads its options and calls a room.
"""
