"""Examples in, scores out: one scorer per task, shared by search, certificate and refit."""
