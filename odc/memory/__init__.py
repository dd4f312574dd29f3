"""What training remembers, as buffers: pseudo-labels, what is kept of every sample, ODC's centroids. No gradients."""

from odc.memory.labels import LabelStore, LabelView
from odc.memory.sample_memory import SampleBuffer, SampleMemory

__all__ = ["LabelStore", "LabelView", "SampleBuffer", "SampleMemory"]
