"""From an episode's rows to model inputs: channels, the 10 Hz grid, windows, statistics, shards.

What is done with the inputs (splits, models, scores) does not belong here.
"""
