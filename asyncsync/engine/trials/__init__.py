"""Private: one trial at work. Begin with ``state.py`` (the trial), then ``acceptance.py`` (a report until its
checkpoint is accepted) and ``runner.py`` (an accepted checkpoint until it is durable). It imports nothing of the engine
above it."""
