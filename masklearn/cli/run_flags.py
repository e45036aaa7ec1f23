"""The `--run.*` flags of `python train.py`."""


class RunFlags:
    """Where the files of a run go, and which part of it this process does.

    Args:
        dir: Folder of the run; runs/<config>-<time> by default.
        resume: Resume the run in that folder from its last checkpoint.
        estimate: Print what the run would cost in forwards, time and memory, from a few steps of it, and stop. Nothing
            is written.
        shard: Learn only a part of the groups, such as 3/8 for the third of eight, each a job that knows nothing of the
            others; give all the same folder. Only with a scope of several groups.
        merge: Finish the run in that folder, whose shards are all done; or take over their masks from these folders
            first, if each shard was given its own.
    """

    def __init__(
        self,
        dir: str | None = None,
        resume: bool = False,
        estimate: bool = False,
        shard: str | None = None,
        merge: bool | list[str] = False,
    ) -> None:
        self.dir, self.resume, self.estimate, self.shard, self.merge = dir, resume, estimate, shard, merge
