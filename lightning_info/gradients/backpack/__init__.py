"""Curvature by BackPACK's own extensions, refused where its rules are wrong."""
