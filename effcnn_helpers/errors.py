"""The one error that the project raises for what its user can mend, and the look-up that most often does."""

from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class EffcnnError(ValueError):
    """Names the value, what was expected and what to do. The command line shows it in one line.

    Anything else that is raised is a mistake of ours, and keeps its traceback.
    """


def look_up(kind: str, name, entries: Mapping[str, Entry]) -> Entry:
    """An entry by its name. Raises EffcnnError, listing the names, for what is none of them."""
    if not isinstance(name, str) or name not in entries:
        raise EffcnnError(f"unknown {kind} {name!r}; the {kind}s are {', '.join(entries)}")
    return entries[name]
