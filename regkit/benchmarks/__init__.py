"""What things cost on the machine at hand: contestants take turns within one run.

Enters: what is to be compared. Leaves: ratios with their spread, as a table, a file, a picture.
Never: a figure without the baseline of the same run.
"""
