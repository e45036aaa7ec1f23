"""Discrete masks: scored, searched for, cut from learned gates and polished; and the baselines beside them."""
