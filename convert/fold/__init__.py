"""What is stored in place of the modules that fold, and what a step then reads."""
