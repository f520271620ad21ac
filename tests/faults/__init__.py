"""Kinds of fault that public reports, kills and damaged inputs uncovered, one file for each kind."""
