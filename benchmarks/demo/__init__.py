"""How the demo checkpoint was made."""
