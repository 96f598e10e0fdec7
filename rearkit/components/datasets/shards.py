"""WebDataset shards that exist already, on disk or behind a pipe or URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from webdataset.shardlists import expand_urls

from rearkit.components.datasets.imagenet_names import readable
from rearkit.contracts import ImageSample
from rearkit.errors import DataError
from rearkit.recipe.settings import setting, settings
from rearkit.system.files import read_json


@settings
class Shards:
    """Existing WebDataset shards: an image (.png, .jpg, .jpeg or .webp) and a class (.cls) for each sample."""

    train: str | None = setting(
        "train shards: a folder, or a path or URL with braces, such as 'in/{0000..1023}.tar'; left out, no images",
        default=None,
    )
    held_out: str | None = setting("held-out shards, likewise", default=None)
    train_images: int | None = setting("how many training images there are, to tell epochs by", default=None, ge=1)
    num_classes: int = setting("C; labels are 0 to C-1", ge=1)

    def checked(self) -> Shards:
        """Return itself; the data stage looks the shards up."""
        return self

    def class_names(self) -> Sequence[str] | None:
        """Return what ``rearkit data --from-folder`` left beside the shards, where it did; ImageNet's in words."""
        names = read_json(Path(self.train or "") / "classes.json")
        return readable(names) if isinstance(names, list) and len(names) == self.num_classes else None

    def size(self, split: str) -> int | None:
        """Return what the recipe says of the training split; for more, the shards would have to be read."""
        return self.train_images if split == "train" else None

    def shards(self, split: str) -> list[str]:
        """Expand braces and folders.

        Raises:
            DataError: an empty or missing folder, or a missing file.
        """
        place = self.held_out if split == "held-out" else self.train
        if place is None:
            return []
        if Path(place).is_dir():
            found = sorted(str(path) for path in Path(place).glob("*.tar"))
            if not found:
                raise DataError(f"[data.source] {place}: no .tar shards in this folder")
            return found
        urls = [str(url) for url in expand_urls(place)]
        missing = [url for url in urls if "://" not in url and not url.startswith("pipe:") and not Path(url).is_file()]
        if missing:
            raise DataError(
                f"[data.source] {place}: {len(missing)} of {len(urls)} shards do not exist, the first {missing[0]}"
            )
        return urls

    def images(self, split: str) -> Iterator[ImageSample]:
        """Never called: there are shards."""
        raise NotImplementedError
