"""Who is near whom: the questions, all pairs, the cell grid, and the choice between them."""
