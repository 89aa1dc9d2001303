"""Public, each optional: asyncsync inside of other frameworks. They import only the public face of asyncsync."""
