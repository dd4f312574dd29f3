"""Packaging of the deep-clustering framework.

The import name is ``odc``; the distribution is called ``online-deep-clustering`` because ``odc`` is taken on PyPI,
and the Open Data Cube spreads its packages (``odc-stac``, ``odc-geo``, ...) over a *namespace package* ``odc``.
Installing one of those into the same environment mixes both: keep them apart.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.findall(r'__version__ = "(.+)"', (ROOT / "odc" / "__init__.py").read_text(encoding="utf-8"))[0]

TEST = ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "selenium>=4.20"]
SLURM = ["submitit>=1.5"]
EXPORT = ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"]
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.27", "latex2mathml>=3.77"]

setup(
    name="online-deep-clustering",
    version=VERSION,
    description="Deep clustering of images: interchangeable clustering heads under one runner",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # The configs are on top of the checkout; installed, they lie in the package (`odc.config.find_config`).
    packages=[*find_packages(include=["odc", "odc.*"]), "odc.configs"],
    package_dir={"odc.configs": "configs"},
    package_data={
        "odc": ["py.typed"],
        "odc.comparison": ["templates/*"],
        "odc.pages": ["templates/*"],
        "odc.configs": ["**/*.py"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.7",
        "torchvision>=0.22",
        "numpy>=1.26",
        "scipy>=1.11",
        "scikit-learn>=1.6",
        "pillow>=10",
        "jinja2>=3.1",
        "matplotlib>=3.6",
        "threadpoolctl>=3",
        "safetensors>=0.4",
        "onedl-mmengine>=0.10.12,<0.11",  # private names of it: tests/test_private.py
        "opencv-python-headless>=4.8",
        "pyarrow>=16",
        "timm>=1.0.9",
    ],
    extras_require={
        # Both own the module `faiss`: with both installed either breaks. Install exactly one.
        "cpu": ["faiss-cpu>=1.15"],
        "gpu": ["faiss-gpu>=1.15"],
        "slurm": SLURM,
        "export": EXPORT,
        "docs": DOCS,
        "test": [*TEST, *SLURM, *EXPORT, *DOCS],
        "dev": ["ruff>=0.9", "mypy>=1.14", "pre-commit>=3.5"],
    },
    entry_points={"console_scripts": ["odc = odc.cli:main"]},
)
