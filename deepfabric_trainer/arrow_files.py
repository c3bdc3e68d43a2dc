"""Arrow files that are not whole: a disk was full, a copy was interrupted."""

import pyarrow as pa


def is_damage(error: BaseException) -> bool:
    """Tell whether an error is Arrow's, of a file that is cut off or no Arrow file."""
    # Of a file that ends inside of a batch Arrow says it with an error of no class of its own.
    ends_early = isinstance(error, OSError) and str(error).startswith("Expected to be able to read")
    return isinstance(error, pa.ArrowInvalid) or ends_early
