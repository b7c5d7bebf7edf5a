"""A training graph becomes one that answers: at positions [t, t + n) of each sequence, with a cache of keys.

lengths --> two graphs of unequal length --> ends: tokens, logits --> positions through every op --> derive --> Graph
"""
