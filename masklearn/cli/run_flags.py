"""The `--run.*` flags of `python train.py`."""


class RunFlags:
    """Where the files of a run go.

    Args:
        dir: Folder of the run; runs/<config>-<time> by default.
        resume: Resume the run in that folder from its last checkpoint.
    """

    def __init__(self, dir: str | None = None, resume: bool = False) -> None:
        self.dir, self.resume = dir, resume
