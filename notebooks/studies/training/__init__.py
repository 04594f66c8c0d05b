"""Training of everything under `datekit/shapes/weights` from nothing."""
