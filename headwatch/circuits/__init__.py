"""Circuits: edges selected from edge scores, and the heads they keep."""
