"""asyncsync."""
