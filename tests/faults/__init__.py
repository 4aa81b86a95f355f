"""What happens to us when what we depend on fails."""
