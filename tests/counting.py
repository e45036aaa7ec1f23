"""Counts of what a model runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from masklearn.masking import MaskedLM
from masklearn.models import LayerSites, override_forward


@contextmanager
def counted_rows(masked_lm: MaskedLM, module_of: Callable[[LayerSites], nn.Module]) -> Iterator[list[int]]:
    """The rows of every call of one module of each layer, in order."""
    rows: list[int] = []

    def count(forward):
        def run(*args, **kwargs):
            rows.append(len(args[0] if args else next(iter(kwargs.values()))))
            return forward(*args, **kwargs)

        return run

    with ExitStack() as stack:
        for site in masked_lm.layout.sites:
            stack.enter_context(override_forward(module_of(site), count))
        yield rows
