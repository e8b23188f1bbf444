"""Video files to batches of clips. Each plug is a `VideoData` that says where its videos are.

Enters: folders, tables, archives as data sets are distributed. Leaves: clips and labels, and which
files could not be read. Never: a net or a penalty.
"""
