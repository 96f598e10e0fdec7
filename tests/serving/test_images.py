"""Images that are drawn over HTTP are those that the command line draws."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
import pytest
from PIL import Image

from rearkit.sampling.sampler import sample


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def drawn(job: Any) -> np.ndarray:
    return np.stack([pixels(base64.b64decode(image["png"])) for image in job["images"]])


def expected(client: Any, classes: list[int], numbers: list[int], seed: int, **table: Any) -> np.ndarray:
    """What `sample --classes … --set sample.…` draws."""
    model = client.served.model
    return sample(model, classes, attrs.evolve(model.recipe.sample, **table), seed, numbers=numbers).images


SETTINGS = [
    {},
    {"guidance_scale": 3.0, "guidance_power": 2.0},
    {"guidance_scale": 3.0, "guidance_schedule": "linear", "temperature": 0.5, "top_k": 4, "top_p": 0.9},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_images_are_those_of_the_command_line(settings: dict[str, Any], client: Any) -> None:
    job = client.draw(classes=["three", 7], count=3, seed=5, **settings)
    wanted = expected(client, [3] * 3 + [7] * 3, [0, 1, 2] * 2, 5, **settings)
    assert np.array_equal(drawn(job), wanted)
    assert job["status"] == "done"


def test_20_people_at_once_get_each_their_own(client: Any) -> None:
    def ask(k: int) -> Any:
        return client.draw(classes=[k % 10], count=1 + k % 3, seed=k, guidance_scale=1.0 + k % 4)

    with ThreadPoolExecutor(20) as pool:
        jobs = list(pool.map(ask, range(20)))
    for k, job in enumerate(jobs):
        count = 1 + k % 3
        wanted = expected(client, [k % 10] * count, list(range(count)), k, guidance_scale=1.0 + k % 4)
        assert np.array_equal(drawn(job), wanted), k
