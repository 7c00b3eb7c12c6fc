"""Samplers: time grids, solvers of ODEs and SDEs, diffusion samplers, and the routine that steps them."""
