"""How many clusters features speak for, without labels, and when they do not say."""

from odc.choosing.choose import Choice, choose_k, default_ks

__all__ = ["Choice", "choose_k", "default_ks"]
