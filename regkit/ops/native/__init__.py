"""The prox passes on a CPU: C, compiled once on the machine that runs it, called by ctypes."""
