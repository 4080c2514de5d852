"""Chips: their catalogue, how they are connected, and the rates of this machine."""
