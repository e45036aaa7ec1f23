"""One call for notebooks and scripts: learn masks, evaluate them, compare them with baselines, look at them."""

from masklearn.api.bank import Bank
from masklearn.api.evaluating import baselines, evaluate
from masklearn.api.learning import learn

__all__ = ["Bank", "baselines", "evaluate", "learn"]
