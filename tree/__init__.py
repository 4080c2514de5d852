"""Trees of token sequences: what their attention reads, and attention that reads a shared prefix once (DeFT 2024)."""
