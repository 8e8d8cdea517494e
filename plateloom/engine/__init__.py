"""How work is done: clusters, tiles, and the one loop that every stage shares. Knows no biology."""
