"""Objects that users define beside the images (``--object TYPE,id=ID,...``) and refer to by their id."""

from .secret import Secret
from .store import ObjectStore

__all__ = ["ObjectStore", "Secret"]
