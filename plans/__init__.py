"""What the user asks for: fly-scan plans and the geometry beneath them."""
