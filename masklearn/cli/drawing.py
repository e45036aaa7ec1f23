"""Whether there is what it takes to draw."""

from importlib.util import find_spec


def can_draw() -> bool:
    """Whether figures can be drawn; says how to get what lacks if not."""
    if find_spec("matplotlib"):
        return True
    print("No figures drawn: they need matplotlib. Get it with: pip install -c constraints.txt -e '.[report]'")
    return False
