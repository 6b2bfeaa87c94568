"""The jigsaw task: pictures cut into pieces and shuffled, and the order that restores them."""

from prefix_rft.tasks.jigsaw.files import write
from prefix_rft.tasks.jigsaw.grade import accuracy, form, hits

__all__ = ["accuracy", "form", "hits", "write"]
