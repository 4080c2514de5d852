"""What measures one checkpoint in a process that has seen no other."""
