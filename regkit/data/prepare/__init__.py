"""The verb `prepare`: a data set is checked, and made ready, before training."""
