"""What requests may say: the JSON bodies, which also are what the interface's description says of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

ClassOf = Annotated[StrictInt | StrictStr, Field(description='number of a class, or its name; "#3": number 3')]
Key = Annotated[
    str | None,
    Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{16,64}$",
        description="id that the request gets; the same request may then be sent twice and is done once",
    ),
]


class Request(BaseModel):
    """What all requests share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: Key


class ImageRequest(Request):
    """Images to draw, or parts of a photo to draw anew; what is left out is as the model's recipe says."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"classes": ["7"], "count": 4, "seed": 0}]})

    classes: list[ClassOf] = Field(min_length=1, max_length=256, description="classes, each drawn `count` times")
    count: int = Field(default=1, ge=1, description="images of each class")
    seed: int | None = Field(default=None, ge=0, lt=2**31, description="seed of what is drawn")
    first: int = Field(default=0, ge=0, lt=2**31, description="number of the first image of each class")
    guidance_scale: float | None = Field(default=None, ge=0, le=100, description="guidance at the last token; 1: none")
    guidance_power: float | None = Field(default=None, gt=0, le=100, description="power of the power-cosine schedule")
    guidance_schedule: str | None = Field(
        default=None, pattern="^(power-cosine|linear|constant)$", description="power-cosine, linear or constant"
    )
    temperature: float | None = Field(default=None, ge=0, le=100, description="0: the likeliest code")
    top_k: int | None = Field(default=None, ge=0, lt=2**31, description="the k likeliest codes only; 0: all")
    top_p: float | None = Field(default=None, gt=0, le=1, description="codes of this total probability only")
    photo: str | None = Field(default=None, max_length=64, description="id of a photo of which a part is drawn anew")
    mask: str | None = Field(
        default=None, description="image in base64, as large as the model's, white where it is to be drawn anew"
    )
    keep: str | None = Field(
        default=None, max_length=64, description="kept instead: left, right, top, bottom or LEFT,TOP,RIGHT,BOTTOM"
    )
    fade: int | None = Field(default=None, ge=0, le=4096, description="pixels over which kept ones fade")


class RebuildRequest(Request):
    """A photo to encode and decode by the tokenizer."""

    photo: str = Field(max_length=64, description="id of the photo")
