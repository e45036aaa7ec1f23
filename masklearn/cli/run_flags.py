"""The `--run.*` flags of `python train.py`."""


class RunFlags:
    """Where the files of a run go.

    Args:
        dir: Folder of the run; runs/<config>-<time> by default.
        resume: Resume the run in that folder from its last checkpoint.
        estimate: Print what the run would cost in forwards, time and memory, from a few steps of it, and stop. Nothing
            is written.
    """

    def __init__(self, dir: str | None = None, resume: bool = False, estimate: bool = False) -> None:
        self.dir, self.resume, self.estimate = dir, resume, estimate
