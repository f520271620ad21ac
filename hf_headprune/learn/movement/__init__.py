"""Block movement: learned scores of weight blocks and FFN units."""
