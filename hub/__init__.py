"""Typed events on their way to a screen: the hub that carries them, their producers, the page."""
