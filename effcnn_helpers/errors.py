"""The one error that the project raises for what its user can mend."""


class EffcnnError(ValueError):
    """Names the value, what was expected and what to do. The command line shows it in one line.

    Anything else that is raised is a mistake of ours, and keeps its traceback.
    """
