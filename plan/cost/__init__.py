"""What a pass costs: the work of its parts over a layout, in bytes, operations and messages."""
