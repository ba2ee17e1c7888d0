"""Episodes as lab hosts ship them: format, store, safe reading, validation.

Model inputs (channels, grids, windows) do not belong here: see ``features``.
"""
