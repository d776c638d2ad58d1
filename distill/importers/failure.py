"""What goes wrong with a foreign checkpoint."""


class ImportFailure(ValueError):  # noqa: N818  `ImportError` is Python's own
    """A file that cannot be imported; the text says which, and why."""
