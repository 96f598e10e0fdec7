"""A model whose images are no squares, over HTTP: the size is fixed when the server starts."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from rearkit.sampling.editing import edit
from rearkit.sampling.sampler import Sampler, sample


def as_pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def drawn(job: Any) -> np.ndarray:
    return np.stack([as_pixels(base64.b64decode(image["png"])) for image in job["images"]])


def as_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def test_it_says_its_size_and_draws_it(tall: Any) -> None:
    about = tall.get("/v1/model").json
    assert (about["height"], about["width"], about["grid"], about["tokens"]) == (16, 8, [8, 4], 32)
    job = tall.draw(classes=[0, 2], count=2, seed=3)
    expected = sample(tall.served.model, [0, 0, 2, 2], None, 3, numbers=[0, 1, 0, 1]).images
    assert expected.shape == (4, 16, 8, 3) and np.array_equal(drawn(job), expected)
    assert "sample MODEL --size 16x8 --classes 0,2" in job["command"]
    manifest = tall.get(f"/v1/jobs/{job['id']}/manifest.json").json
    assert manifest["recipe"]["tokenizer"]["image_size"] == [16, 8]
    assert b"8 \xc3\x97 16 pixels" in tall.get("/").body


def test_tokens_are_told_row_by_row(tall: Any) -> None:
    job = tall.draw(classes=[1], count=1)
    assert tall.get(job["url"] + "/events").body.count(b"event: tokens") >= 1


def test_a_photo_is_cut_to_it_and_edited(tall: Any) -> None:
    shades = np.random.default_rng(0).integers(0, 256, (16, 8, 3), np.uint8)
    photo = tall.ask("POST", "/v1/photos", as_png(shades)).json
    assert (photo["width"], photo["height"]) == (8, 16)
    assert np.array_equal(as_pixels(tall.get(photo["url"]).body), shades)
    job = tall.draw(classes=[1], count=2, photo=photo["id"], keep="top", fade=0)
    kept = torch.zeros(16, 8, dtype=torch.bool)
    kept[:8] = True
    expected = edit(Sampler(tall.served.model), torch.from_numpy(shades).permute(2, 0, 1), kept, [1, 1], [0, 1], 0)
    assert np.array_equal(drawn(job), expected) and np.array_equal(drawn(job)[0, :8], shades[:8])
    wrong = base64.b64encode(as_png(np.zeros((8, 16), np.uint8))).decode()
    refused = tall.ask("POST", "/v1/images", {"classes": [1], "photo": photo["id"], "mask": wrong})
    assert refused.status == 400 and "mask: 16 × 8 pixels; expected the model's 8 × 16" in refused.json["error"]
    rebuilt = tall.ask("POST", "/v1/reconstructions?wait=true", {"photo": photo["id"]}).json
    assert drawn(rebuilt).shape == (4, 16, 8, 3)
