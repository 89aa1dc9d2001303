"""The verbs for the command itself: its settings, completion in a shell, and a check of a store."""
