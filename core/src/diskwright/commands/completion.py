"""Print a script that completes command lines in a shell: commands, options, formats, other values and files.

It knows the formats that are installed when it is printed, and starts nothing when it completes.

Examples:
  diskwright completion bash > ~/.local/share/bash-completion/completions/diskwright
  diskwright completion zsh > /usr/local/share/zsh/site-functions/_diskwright
  diskwright completion fish > ~/.config/fish/completions/diskwright.fish
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from ..arguments import UsageError
from ..known import did_you_mean

if TYPE_CHECKING:
    from ..cli import App

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``completion``."""
    parser.add_argument("operands", nargs="*", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")


def run(args: Namespace, app: App) -> int:
    """Run ``completion``."""
    if len(args.operands) != 1:
        raise UsageError("Expecting the name of a shell: bash, zsh or fish")
    shell = args.operands[0]
    if shell not in SHELLS:
        advice = did_you_mean(shell, SHELLS)
        raise UsageError(f"No completion for the shell '{shell}': there are bash, zsh and fish", hint=advice)
    from ..completion import completion_script

    app.out.write(completion_script(shell, app.program, app.context))
    return 0
