"""What is to be known of a GPU before it is trusted, found out by one command within minutes.

In: a device. Out: a report of parts, each run in a process and within a time of its own. Where
there is no GPU a fake one counts launches, copies and waits; it never gives a time.
"""
