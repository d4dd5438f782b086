"""Completion of commands, options and values in a shell, by click."""

from typing import Literal

import click
from click.shell_completion import get_completion_class

from mgm_shared.errors import UserError

Shell = Literal["bash", "zsh", "fish"]
# The file that a shell reads at its start, and the line that belongs there.
START_FILES: dict[str, tuple[str, str]] = {
    "bash": ("~/.bashrc", 'eval "$({program} completion bash)"'),
    "zsh": ("~/.zshrc", 'eval "$({program} completion zsh)"'),
    "fish": ("~/.config/fish/completions/{program}.fish", "{program} completion fish | source"),
}


def completion_script(program: str, shell: Shell) -> str:
    """The script that makes a shell complete `program`, `mgm-prep` or `mgm-train`. UserError for another shell."""
    kind = get_completion_class(shell)
    if kind is None or shell not in START_FILES:
        raise UserError(f"there is no completion for {shell!r}, only for {', '.join(START_FILES)}")
    # The script asks the program itself; a group without commands stands in for it here.
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    source = kind(click.Group(program), {}, program, variable).source()
    place, line = (text.replace("{program}", program) for text in START_FILES[shell])
    return f"# In {place}:\n#     {line}\n{source}"
