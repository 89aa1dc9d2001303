"""The verbs for what a store holds: browse it, choose from it, change it."""
