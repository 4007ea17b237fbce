"""Hyper-parameter search on Ray Tune: space, trials, scores, a verified winner, its page."""
