"""Weights of the libraries: found in their caches, or fetched into these, and said in a line where neither goes."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch

from odc.checkpoints import first_rank_first
from odc.errors import InputError, one_line

_PATIENCE = 10.0  # seconds to wait for a server's first answer: the libraries try again for a minute


def hub_file(name: str, repository: str, file: str | None = None) -> Path:
    """Return the file of a model's weights in a repository of the Hugging Face hub, from its cache or fetched into it.

    Args:
        name: what to call the model in messages.
        repository: ``OWNER/NAME``, and behind an ``@`` the revision where it is not the newest.
        file: in it; by default what timm writes.

    Raises:
        InputError: it is in the cache no more than it is within reach.
    """
    import huggingface_hub as hub

    place, _, revision = repository.partition("@")
    where: dict[str, Any] = {"revision": revision or None}
    # The first is what timm prefers for the second, and what nearly all repositories have.
    safe = (file or "pytorch_model.bin").replace("pytorch_model.bin", "model.safetensors")
    files = (safe, file or "pytorch_model.bin")
    told = f"file '{files[0]}' of the repository '{place}' on the Hugging Face hub"
    cache = hub.constants.HF_HUB_CACHE
    with first_rank_first():
        for candidate in files:
            if isinstance(found := hub.try_to_load_from_cache(place, candidate, **where), str):
                return Path(found)
        offline = hub.constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else _unreachable(hub.hf_hub_url(place, files[0]))
        if reason is not None:
            raise _absent(name, told, cache, reason)
        try:
            found = files[0] if hub.file_exists(place, files[0], **where) else files[1]
            return Path(hub.hf_hub_download(place, found, etag_timeout=_PATIENCE, **where))
        except Exception as error:  # whatever of its client and of all that lies between
            raise _absent(name, told, cache, one_line(error)) from error


def torchvision_file(name: str, entry: Enum) -> Path:
    """Return the file of torchvision's weights, from torch's cache or fetched into it.

    Raises:
        InputError: it is in the cache no more than it is within reach.
    """
    weights: Any = entry
    url = str(weights.url)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    told = f"file '{path.name}' of torchvision's weights {entry.name}"
    with first_rank_first():
        if path.is_file():
            return path
        if (reason := _unreachable(url)) is not None:
            raise _absent(name, told, folder, reason)
        try:
            weights.get_state_dict(progress=False, check_hash=True)
        except Exception as error:
            raise _absent(name, told, folder, one_line(error)) from error
    return path


def _unreachable(url: str) -> str | None:
    """Return why no server answers at an address, in some seconds; ``None`` where one does."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=_PATIENCE).close()
    except HTTPError:  # an answer
        return None
    except URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return one_line(error)
    return None


def _absent(name: str, told: str, cache: str | Path, reason: str) -> InputError:
    return InputError(
        f"the weights of '{name}' are not in the cache {cache} and cannot be fetched ({reason[:200]}): {told}; fetch "
        "them where there is a network and copy the cache, or give a file of them by weights=FILE"
    )
