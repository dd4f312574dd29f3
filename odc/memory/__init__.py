"""What training remembers, as buffers: pseudo-labels, and ODC's samples and centroids. No FAISS, no gradients."""

from odc.memory.labels import LabelStore, LabelView
from odc.memory.sample_memory import SampleMemory

__all__ = ["LabelStore", "LabelView", "SampleMemory"]
