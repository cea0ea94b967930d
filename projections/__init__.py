"""What we now know."""
