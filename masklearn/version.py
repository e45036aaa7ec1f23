"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version


def masklearn_version() -> str:
    """The installed version; `unknown` where the package runs from a source tree that is not installed."""
    try:
        return version("masklearn")
    except PackageNotFoundError:
        return "unknown"
