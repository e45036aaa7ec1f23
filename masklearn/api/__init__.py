"""One call for notebooks and scripts: learn masks, evaluate them, compare them with baselines, look at them."""

from masklearn.api.bank import LearnedBank
from masklearn.api.circuits import circuit
from masklearn.api.evaluating import baselines, evaluate
from masklearn.api.learning import learn

__all__ = ["LearnedBank", "baselines", "circuit", "evaluate", "learn"]
