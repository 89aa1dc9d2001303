"""``completion``: completion of commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from asyncsync.cli.app import DONE, cli, command
from asyncsync.cli.options import Settings
from asyncsync.cli.output import Output

COMPLETION = """Print the script that completes commands and options in a shell.

Why: commands and options need not be remembered.

\b
Examples:
  asyncsync completion bash > ~/.local/share/bash-completion/completions/asyncsync
  asyncsync completion zsh > ~/.zfunc/_asyncsync
  asyncsync completion fish > ~/.config/fish/completions/asyncsync.fish

Exit codes: 0 done, 2 usage.
"""


@command(help=COMPLETION)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
async def completion(output: Output, settings: Settings, *, shell: str) -> int:
    """See COMPLETION."""
    del settings
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, "asyncsync", "_ASYNCSYNC_COMPLETE").source()
    output.line(script)
    output.document({"ok": True, "shell": shell, "script": script})
    return DONE
