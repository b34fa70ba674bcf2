"""What the user asks for: fly-scan plans and the geometry beneath them."""

from .fly import fly_grid

__all__ = ["fly_grid"]
