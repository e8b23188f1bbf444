"""The colours of all pictures, one meaning each. Okabe and Ito's, which all eyes tell apart."""

BLUE = "#0072B2"  # ours, what is alive, what speaks for
RED = "#D55E00"  # what speaks against, what was held out, what went wrong
GREEN, PINK, SKY, ORANGE = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
# Of several alike, one a series; yellow is left out, paper swallows it.
SERIES = (BLUE, RED, GREEN, PINK, SKY, ORANGE, "#7F3C8D", "#8C564B")

INK = "#222222"  # text, whiskers, what was chosen
QUIET = "#666666"  # notes, limits, without a penalty
GREY = "#9A9A9A"  # others than ours
FAINT = "#CCCCCC"  # grids and frames
PALE = "#E4E4E4"  # what is zero, or not there
