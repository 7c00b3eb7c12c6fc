"""Flows: interpolants, couplings, training objectives, the fields they give, and what measures their paths."""
