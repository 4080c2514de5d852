"""Measurements of one checkpoint in a process that has loaded no other."""
