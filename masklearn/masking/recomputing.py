"""Layers that are run again in the backward pass: what makes a gradient through offloaded weights fit into memory.

Autograd keeps the weights that a forward has used until the backward pass, wherever they were brought from. So after a
forward in which every weight was brought in once, all of them would be in memory.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from masklearn.masking.gating import GateEdits
from masklearn.models import Forward, override_forward


@contextmanager
def layers_recomputed(edits: GateEdits) -> Iterator[None]:
    """Let every layer but the last keep only its input for the backward pass, while the context is open.

    The backward pass runs each of these layers again, under the same edits, whose hooks it registers itself: it must
    not begin before those of the forward are removed. The last layer is spared, since its backward follows at once.

    Args:
        edits: The edits under which the model runs.
    """

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), edits.applied()

    def recomputed(forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            # a layer that stops early would leave weights behind that its last module has brought in
            with set_checkpoint_early_stop(False):
                return checkpoint(
                    forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kwargs
                )

        return run

    with ExitStack() as stack:
        for site in edits.layout.sites[:-1]:
            stack.enter_context(override_forward(site.layer, recomputed))
        yield
