"""Corpora of any size, made from recorded episodes: to try the workflow at scale, never to learn.

A simulated episode is a child of a recorded one. It is marked ``synthetic`` and names its parent.
"""
