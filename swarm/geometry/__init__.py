"""Space, vectors, angles, and what is solid."""
