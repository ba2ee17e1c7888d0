"""Episodes as lab hosts ship them: format, store, safe reading, validation.

What a model is later fed (channels, grids, windows) does not belong here: see ``features``.
"""
