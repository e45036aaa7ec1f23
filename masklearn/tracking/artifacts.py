"""Mask files that runs have logged to W&B as artifacts."""

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import wandb

from masklearn.errors import UserError, one_line
from masklearn.tracking.wandb_run import project_name, wandb_settings


def fetch_artifact(name: str, folder: str | Path | None = None) -> Path:
    """Download an artifact and return the folder that it is in.

    Args:
        name: Such as `mask-gpt2:latest`, `project/mask-gpt2:v3` or `entity/project/mask-gpt2:v3`. Without a project it
            is that of `WANDB_PROJECT`, by default masklearn.
        folder: Where to put it; by default a new folder for temporary files.

    Raises:
        UserError: If nobody is logged in, if there is no such artifact, or if W&B cannot be reached.
    """
    path = name if "/" in name else f"{project_name()}/{name}"
    path = path if ":" in path else f"{path}:latest"
    advice = "Check the name (entity/project/mask-NAME:latest), the network and the login (wandb login)"
    try:
        wandb.setup(wandb_settings(silent=True))  # otherwise W&B asks its server for the user's name, to greet them
        if not wandb.login(prompt=False, verify=False):
            raise UserError(f"cannot read {path} from W&B: no login found. {advice}")
        artifact: Any = wandb.Api().artifact(path)
        return Path(artifact.download(root=str(folder or mkdtemp(prefix="mask-"))))
    except UserError:
        raise
    except Exception as error:  # W&B raises what its client libraries do
        raise UserError(f"cannot read {path} from W&B ({one_line(error)}). {advice}") from error
