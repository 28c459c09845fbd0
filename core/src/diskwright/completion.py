"""Scripts for shells that complete command lines, made from the parsers by shtab.

They are static: whoever presses a key does not wait for a program to start. What shtab takes for granted of argparse
and does not hold for ``getopt_long`` is put right here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .errors import ImageError
from .parsers import COMMANDS, SUMMARY, whole_parser

if TYPE_CHECKING:
    from .arguments import Parser
    from .context import Context

_BASH = """
# Words that bash has cut at equals signs, as in --output=json or if=FILE, are parts of one.
NAME_words() {
  local -a words=()
  local index after_equals=0 end=$COMP_CWORD
  for ((index = 0; index <= COMP_CWORD; index++)); do
    if [[ ${COMP_WORDS[index]} != = ]]; then
      words+=("${COMP_WORDS[index]}")
      continue
    fi
    end=$((end - 1))
    ((index < COMP_CWORD - 1)) || after_equals=1
    ((index < COMP_CWORD)) || { words+=(""); end=$((end + 1)); }
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$end
  FUNCTION
  [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace 2>/dev/null
  ((!after_equals)) || [[ ! -e ${COMPREPLY[0]-} ]] || compopt -o filenames 2>/dev/null
}

NAME_operand_names() {
  if ((after_equals)); then
    compgen -f -- "$1"
  else
    compgen -W "OPERANDS" -- "$1"
  fi
}

NAME_format_options() {
  ((after_equals)) || compgen -W "OPTIONS" -- "$1"
}

complete -o bashdefault -F NAME_words PROGRAM
"""

_ZSH = """
NAME_operand_names() {
  if compset -P '*='; then _files; else compadd -S '' -- OPERANDS; fi
}

NAME_format_options() {
  compset -P '*,'
  if compset -P 'backing_file=' || compset -P 'data_file='; then _files; else compadd -S '' -- OPTIONS; fi
}
"""

_FISH = """
function NAME_operand_names
  set -l word (commandline -ct)
  if string match -q '*=*' -- $word
    set -l parts (string split -m 1 = -- $word)
    for path in (__fish_complete_path $parts[2])
      echo $parts[1]=$path
    end
  else
    printf '%s\\n' OPERANDS
  end
end

function NAME_format_options
  printf '%s\\n' OPTIONS
end
"""
_PREAMBLES = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion_script(shell: str, program: str, context: Context) -> str:
    """A script that completes the command lines of the program.

    :param shell: ``bash``, ``zsh`` or ``fish``.
    :param program: the name that is typed.
    :raises ImageError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ImageError(
            "The package shtab is needed to make completion scripts", hint="pip install 'diskwright-core[completion]'"
        ) from None
    parser = whole_parser(program)
    name = re.sub(r"\W", "_", f"_{program}")
    formats = context.formats.names()
    operands: set[str] = set()
    for command, summary in _commands(parser):
        command.description = summary
        for action in command.declared():
            _annotate(action, shell, name, formats, shtab.FILE)
            operands.update(text for text in action.choices or () if _is_operand_name(text))
    words = {"NAME": name, "PROGRAM": program, "FUNCTION": re.sub(r"\W", "_", f"_shtab_{program}")}
    words |= {"OPERANDS": " ".join(sorted(operands)), "OPTIONS": " ".join(_option_names(context, formats))}
    extra = re.sub("|".join(words), lambda found: words[found[0]], _PREAMBLES[shell])
    if shell == "bash":  # what is said last of a program counts
        return str(shtab.complete(parser, shell)) + extra
    script = str(shtab.complete(parser, shell, preamble=extra))
    return _mended(script, words["FUNCTION"]) if shell == "zsh" else script


def _mended(script: str, function: str) -> str:
    """What shtab does not say to zsh: options of the program end at the command, and operands do not at the first."""
    options = f"${function}_options\n"
    return script.replace(f" -s {options}", f" -s -A '-*' {options}").replace('"(*)::', '"*:')


def _commands(parser: Parser) -> list[tuple[Parser, str]]:
    """The parsers of the program and of its commands, each with one line of what it does."""
    nested = [action.choices for action in parser.declared() if isinstance(action.choices, dict)]
    return [(parser, SUMMARY), *((command, COMMANDS[name]) for group in nested for name, command in group.items())]


def _annotate(action: Any, shell: str, name: str, formats: list[str], files: Any) -> None:
    """Tell shtab what the value of an option, or an operand, is."""
    if isinstance(action.choices, dict):  # the commands
        return
    if action.option_strings and action.nargs == "?":
        # Its value, if any, follows an equals sign: what comes behind a space is none.
        action.nargs = 0
    elif action.option_strings and action.nargs is None and shell == "zsh":
        # In zsh's terms: a value may follow an equals sign, or a letter, at once.
        action.option_strings = [text + ("=" if text.startswith("--") else "+") for text in action.option_strings]
    helper = None
    if action.metavar == "FMT":
        action.choices = formats
    elif action.metavar == "OPTS":
        helper = f"{name}_format_options"
    elif any(map(_is_operand_name, action.choices or ())):
        helper = f"{name}_operand_names"
    elif action.metavar == "FILE" or not (action.option_strings or action.choices):
        action.complete = files
    if helper is not None:
        action.complete = {"bash": helper, "zsh": helper, "fish": f"({helper})"}


def _is_operand_name(text: str) -> bool:
    return text.endswith("=")


def _option_names(context: Context, formats: list[str]) -> list[str]:
    """What can stand in option lists: the names of all options for creating and changing images."""
    names = {"help"}
    for format in formats:
        for hook in ("creation_options", "amend_options"):
            if context.formats.has(hook, format):
                names.update(f"{option.name}=" for option in context.formats.call(hook, format))
    return sorted(names)
