"""What should happen: decisions, and the daemon that carries them out."""
