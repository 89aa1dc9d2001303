"""Public, each optional: asyncsync inside other frameworks. They import only the public face of asyncsync."""
