"""Episodes on the host: played, recorded, replayed, drawn."""
