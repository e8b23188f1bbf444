"""What the films of these tests are."""

from regkit.benchmarks.reading.films import Kind

NUM_FRAMES, GREY_STEP = 48, 5  # of the film whose frame `n` is a grey of GREY_STEP * n
TINY = Kind(96, 64, 25, 6)
