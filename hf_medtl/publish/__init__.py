"""What others get."""
