"""What assets share: the workspace (paths, settings), guards, progress."""
