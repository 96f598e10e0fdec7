from __future__ import annotations

import json
from pathlib import Path

from rearkit.components.datasets.imagenet_names import readable
from rearkit.components.datasets.shards import Shards

IDS = [f"n{number:08d}" for number in range(1000)]


def test_the_thousand_wordnet_ids_become_words() -> None:
    names = readable(IDS)
    assert len(names) == 1000
    assert names[0] == "tench" and names[207] == "golden retriever" and names[999] == "toilet tissue"


def test_other_names_stay() -> None:
    for names in (["cat", "dog"], IDS[:100], [*IDS[:-1], "cat"]):
        assert readable(names) == names


def test_shards_of_imagenet_know_their_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(IDS))
    found = Shards(train=str(tmp_path), num_classes=1000).class_names()
    assert found is not None and found[1] == "goldfish"
