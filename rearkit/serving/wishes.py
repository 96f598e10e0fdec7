"""Requests, checked and complete: what is to be drawn, or rebuilt, whatever the model's defaults become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import attrs
from torch import Tensor

from rearkit.contracts import ImageSize, size_argument, size_text
from rearkit.data.photos import keep_part
from rearkit.errors import RearkitError
from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import DRAWN_BY, SampleTable
from rearkit.sampling.editing import default_fade, known_tokens
from rearkit.sampling.picture import class_text, find_class
from rearkit.serving.limits import Limits
from rearkit.serving.schema import ImageRequest
from rearkit.serving.served import Served
from rearkit.serving.uploads import Mask, Photos


@attrs.frozen(eq=False)
class Edit:
    """A photo (3, H, W) uint8 of which a part is kept."""

    photo: Tensor
    name: str
    mask: Mask
    fade: int


@attrs.frozen(eq=False)
class Rebuilding:
    """A photo that is encoded and decoded."""

    photo: Tensor
    name: str
    pictures: tuple[str, ...] = ("original", "tokens", "reconstruction", "difference")
    key: None = None

    @property
    def size(self) -> int:
        """Pictures that come of it."""
        return len(self.pictures)

    def content(self) -> dict[str, Any]:
        """The request in full."""
        return {"photo": self.name}


@attrs.frozen(eq=False)
class Drawing:
    """Images to draw.

    Attributes:
        classes: those that were asked for.
        count: images of each.
        seed: seed of what is drawn.
        first: number of the first image of each class.
        table: guidance, temperature, top-k and top-p.
        edit: the photo of which a part is drawn anew, if any.
    """

    classes: tuple[int, ...]
    count: int
    seed: int
    first: int
    table: SampleTable
    edit: Edit | None = None

    @property
    def size(self) -> int:
        """Images in all."""
        return len(self.classes) * self.count

    @property
    def images(self) -> list[tuple[int, int]]:
        """Class and number of each image; numbers count up within a class, as those of ``sample --classes`` do."""
        return [(label, self.first + k) for label in self.classes for k in range(self.count)]

    @property
    def key(self) -> tuple[Any, ...]:
        """Drawings of one key can be made in one batch: guidance scales and seeds are each image's own."""
        table = self.table
        # Whether there is guidance decides how many rows a step has, and so how a GPU rounds.
        guided = table.guidance_scale != 1
        return (guided, *(getattr(table, name) for name in DRAWN_BY[1:]))

    def content(self) -> dict[str, Any]:
        """The request in full."""
        given = {name: getattr(self.table, name) for name in DRAWN_BY}
        edit = self.edit
        some = {} if edit is None else {"photo": edit.name, "mask": edit.mask.text, "fade": edit.fade}
        whole = {"classes": list(self.classes), "count": self.count, "seed": self.seed, "first": self.first}
        return {**whole, **given, **some}

    def link(self) -> str:
        """The address of the page that draws the same again, to the bit."""
        content = {**self.content(), "classes": ",".join(map(str, self.classes))}
        return "/?" + urlencode(content, safe=",")

    def command(self, names: Sequence[str], size: ImageSize | None = None) -> str:
        """The command line that draws the same of the model in a file MODEL.

        Args:
            names: of all classes.
            size: of the images, if the model was trained at another.
        """
        settings = [f"sample.seed={self.seed}", *(f"sample.{n}={getattr(self.table, n)}" for n in DRAWN_BY)]
        options = " ".join(f"--set {setting}" for setting in settings)
        classes = ",".join(class_text(label, names) for label in self.classes)
        if "#" in classes:
            classes = f'"{classes}"'  # for a shell, # may begin a comment
        edit = self.edit
        photo = "" if edit is None else f"--image photo.png --mask mask.png --fade {edit.fade} "
        sized = "" if size is None else f"--size {size_argument(size)} "
        first = f" --first {self.first}" if self.first else ""
        images = f"--classes {classes} -k {self.count}{first}"
        return f"python -m rearkit sample MODEL {photo}{sized}{images} {options} --grid images.png"


def drawing_of(request: ImageRequest, served: Served, photos: Photos, limits: Limits) -> Drawing:
    """Check a request against the model and the limits, and complete it.

    Raises:
        RearkitError: it asks for what is not there, or for too much.
    """
    names = served.model.classes.titles
    if len(request.classes) * request.count > limits.images:
        raise RearkitError(
            f"count: {len(request.classes)} × {request.count} images; at most {limits.images} a request are drawn"
        )
    # A JSON number is the class's number, also where another class has it as its name.
    labels = tuple(find_class(one if isinstance(one, str) else f"#{one}", names, "classes") for one in request.classes)
    changes = {name: getattr(request, name) for name in DRAWN_BY if getattr(request, name) is not None}
    seed = served.model.recipe.sample_seed if request.seed is None else request.seed
    table = with_changes(served.sampler.table, **changes)
    edit = _edit_of(request, served, photos, limits)
    return Drawing(labels, request.count, seed, request.first, table, edit)


def _edit_of(request: ImageRequest, served: Served, photos: Photos, limits: Limits) -> Edit | None:
    if request.photo is None:
        if request.mask is not None or request.keep is not None or request.fade is not None:
            raise RearkitError("mask, keep, fade: they say what to do with a photo; give its id as photo")
        return None
    if (request.mask is None) == (request.keep is None):
        raise RearkitError("photo: give mask or keep, one of them: which part is drawn anew")
    photo = photos.find(request.photo)
    if request.mask is not None:
        mask = Mask.read(request.mask, photos.how, limits)
    else:
        mask = Mask.of(keep_part(request.keep or "", photos.how.size))
    known_tokens(served.model, mask.kept_HW)  # refused here if nothing is left to keep or to draw
    fade = default_fade(served.model) if request.fade is None else request.fade
    if fade > max(photos.how.shape):
        raise RearkitError(f"fade: {fade} pixels; the model's images have {size_text(photos.how.size)}")
    return Edit(photo, request.photo, mask, fade)
