"""What there is to sense, and what instruments make of it."""
