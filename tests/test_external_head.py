"""A method of one's own: a head in a file outside the package, a config beside it, and nothing else.

The two texts are those that the documentation shows, so what a reader copies is what runs here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from odc.cli import main

ROOT = Path(__file__).parent.parent

MY_HEAD = """# my_head.py
import torch.nn.functional as F
from torch import nn

from odc.clustering import kmeans
from odc.heads import ClusterHead
from odc.registry import HEADS
from odc.structures import Losses, Plan, PseudoLabels, Refresh, Stream


@HEADS.register_module()
class MyHead(ClusterHead):
    def __init__(self, in_channels, num_clusters):
        super().__init__()
        self.num_clusters = num_clusters
        self.classifier = nn.Linear(in_channels, num_clusters)

    def plan(self, epoch):
        return Plan((Stream('train', size=256),), refresh=Refresh() if epoch % 2 == 0 else None)

    def refresh(self, table, generator, comm):
        labels = kmeans(table.features, self.num_clusters, generator=generator).labels
        return PseudoLabels(table.index[:, None], labels[:, None], (self.num_clusters,))

    def loss(self, batches, labels, generator, comm):
        batch = batches['train']
        return Losses({'loss': F.cross_entropy(self.classifier(batch.z['train'][:, 0]), batch.target[:, 0])})

    def predict(self, z):
        return self.classifier(z)
"""

MY_CONFIG = f"""# my_config.py
_base_ = 'configs/odc/{next((ROOT / "configs" / "odc").glob("*digits.py")).name}'
custom_imports = dict(imports=['my_head'])
model = dict(head=dict(_delete_=True, type='MyHead', num_clusters=10))
optim_wrapper = dict(paramwise_cfg=None)
"""


def shown(first_line: str) -> str | None:
    """Return the fenced block of the documentation that starts with this line."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        found = re.search(
            rf"^```\w*\n({re.escape(first_line)}\n.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S
        )
        if found:
            return found[1]
    return None


@pytest.fixture(params=["documentation", "own"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with ``my_head.py`` and ``my_config.py``, from which the checkout's configs can be reached."""
    own = request.param == "own"
    head, config = (None, None) if own else (shown("# my_head.py"), shown("# my_config.py"))
    assert own or (head and config), "the documentation shows no block '# my_head.py' or '# my_config.py'"
    (tmp_path / "my_head.py").write_text(head or MY_HEAD)
    (tmp_path / "my_config.py").write_text(config or MY_CONFIG)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    import odc.heads  # noqa: F401  # what is registered there stays
    from odc.registry import HEADS

    known = dict(HEADS.module_dict)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("my_head", None)
    HEADS._module_dict = known


def test_it_trains_by_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cfg-options", "train_cfg.max_epochs=1"]
    assert main(["train", "my_config.py", "--work-dir", "run", *options]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "epoch 1/1  loss" in out
    assert {"acc", "nmi", "ari"} <= set(json.loads((folder / "run/metrics.json").read_text()))
    assert (
        main(["train", "my_config.py", "--work-dir", "run", "--resume", "--cfg-options", "train_cfg.max_epochs=2"]) == 0
    )
    assert "epoch 2/2  loss" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["documentation"], indirect=True)
def test_it_is_compared_beside_odc(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["compare", "--methods", "odc", "my_config.py", "--seeds", "0", "--epochs", "1", "--out", "demo"])
    assert code == 0, capsys.readouterr()
    records = [json.loads(line) for line in (folder / "demo/results.jsonl").read_text().splitlines()]
    assert sorted(r["method"] for r in records) == ["my_config", "odc"]
    for record in records:
        assert record["epochs"] == 1
        assert all(0 <= record[m] <= 1 for m in ("acc", "nmi", "knn"))
    table = (folder / "demo/table.md").read_text()
    assert "| my_config" in table
    assert "| odc" in table
