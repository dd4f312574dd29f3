"""Deep clustering of images: interchangeable heads over self-supervised backbones, under one mmengine-style runner."""

__version__ = "0.1.0"
