"""Datasets of recorded episodes: what they hold, how they are read and written, and minibatches of them."""
