"""Images that are drawn over HTTP are those that the command line draws."""

from __future__ import annotations

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rearkit.evaluation.rebuilt import reconstruct
from rearkit.recipe.tables import DRAWN_BY
from rearkit.sampling.editing import edit
from rearkit.sampling.sampler import Sampler, sample
from rearkit.serving.jobs import Job, Jobs
from rearkit.serving.limits import Limits
from rearkit.serving.progress import Progress
from rearkit.serving.wishes import Drawing

TEXTS = ("photo", "mask", "guidance_schedule")


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


def test_the_page_and_a_request_have_all_that_decides_what_is_drawn(client: Any) -> None:
    page = client.get("/").body.decode()
    assert all(f'id="{name}"' in page for name in DRAWN_BY)
    assert set(DRAWN_BY) <= set(client.get("/openapi.json").json["components"]["schemas"]["ImageRequest"]["properties"])


def test_20_people_at_once_get_each_their_own(client: Any) -> None:
    scales = [1.0 + k % 4 for k in range(20)]

    def ask(k: int) -> Any:
        return client.draw(classes=[k % 10], count=2, seed=k % 2, guidance_scale=scales[k])

    with ThreadPoolExecutor(20) as pool:
        jobs = list(pool.map(ask, range(20)))
    for seed in (0, 1):
        mine = range(seed, 20, 2)
        each = {"numbers": [0, 1] * 10, "guidance_scale": [scales[k] for k in mine for _ in (0, 1)]}
        wanted = sample(client.served.model, [k % 10 for k in mine for _ in (0, 1)], None, seed, **each).images
        assert np.array_equal(np.concatenate([drawn(jobs[k]) for k in mine]), wanted)


def test_a_batch_serves_people_with_other_seeds_and_scales(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    draw = client.served.sampler.tokens

    def counting(rows: Any, *more: Any) -> Tensor:
        sizes.append(len(rows.classes_B))
        if len(sizes) == 1:
            assert client.server.jobs is not None
            while len(client.server.jobs._jobs) < before + 4:  # until the others have come
                time.sleep(0.01)
        return draw(rows, *more)

    monkeypatch.setattr(client.served.sampler, "tokens", counting)
    before = len(client.server.jobs._jobs)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(client.draw, classes=[k], count=2, seed=k, guidance_scale=2.0 + k) for k in range(4)]
        for k, job in enumerate(jobs):
            wanted = expected(client, [k] * 2, [0, 1], k, guidance_scale=2.0 + k)
            assert np.array_equal(drawn(job.result()), wanted)
    # Those that came while the first batch was held back are one batch.
    assert sum(sizes) == 8 and len(sizes) <= 2


def upload(client: Any, photo: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(buffer, format="png")
    found = client.ask("POST", "/v1/photos", buffer.getvalue())
    assert found.status == 201
    name: str = found.json["id"]
    return name


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_a_part_of_a_photo_is_drawn_anew_as_the_command_line_does(client: Any, photo: Tensor) -> None:
    kept = torch.ones(8, 8, dtype=torch.bool)
    kept[3:7, 2:8] = False
    buffer = io.BytesIO()
    Image.fromarray((~kept).numpy()).save(buffer, format="png")
    mask = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    job = client.draw(classes=[3, 7], count=2, seed=4, photo=upload(client, photo), mask=mask)
    wanted = edit(Sampler(client.served.model, seed=4), photo, kept, [3, 3, 7, 7], [0, 1, 0, 1])
    assert np.array_equal(drawn(job), wanted)


def test_edits_and_plain_images_share_a_batch(client: Any, photo: Tensor) -> None:
    name = upload(client, photo)
    with ThreadPoolExecutor(8) as pool:
        edits = [pool.submit(client.draw, classes=[k], seed=9, photo=name, keep="top", fade=1) for k in range(4)]
        plain = [pool.submit(client.draw, classes=[k], seed=9) for k in range(4)]
        kept = torch.zeros(8, 8, dtype=torch.bool)
        kept[:4] = True
        for k in range(4):
            wanted = edit(Sampler(client.served.model, seed=9), photo, kept, [k], fade=1)
            assert np.array_equal(drawn(edits[k].result()), wanted)
            assert np.array_equal(drawn(plain[k].result()), expected(client, [k], [0], 9))


def test_a_photo_is_rebuilt(client: Any, photo: Tensor) -> None:
    job = client.ask("POST", "/v1/reconstructions?wait=true", {"photo": upload(client, photo)}).json
    (found,) = reconstruct(client.served.model.tokenizer, photo[None])
    assert [image["name"] for image in job["images"]] == list(found.pictures)
    assert np.array_equal(drawn(job), torch.stack(list(found.pictures.values())).permute(0, 2, 3, 1).numpy())
    assert job["psnr"] == pytest.approx(found.psnr, abs=1e-4) and job["ssim"] == pytest.approx(found.ssim, abs=1e-4)


@pytest.mark.parametrize("edits", [False, True])
def test_a_link_draws_the_same_again(edits: bool, client: Any, photo: Tensor) -> None:
    some = {"photo": upload(client, photo), "keep": "left"} if edits else {}
    job = client.draw(classes=["six"], count=2, seed=11, first=3, temperature=0.7, top_k=5, **some)
    link = dict(parse_qsl(urlsplit(job["link"]).query))
    again = {name: text if name in TEXTS else json.loads(text) for name, text in link.items()}
    again["classes"] = [again["classes"]]
    assert np.array_equal(drawn(client.draw(**again)), drawn(job))
    assert "--classes 6 -k 2 --first 3 --set sample.seed=11" in job["command"]


def test_the_manifest_says_what_made_them_and_nothing_of_the_machine(client: Any) -> None:
    job = client.draw(classes=[2, 2], count=2, seed=3, guidance_scale=1.5)
    text = client.get(job["manifest"]).body.decode()
    manifest = json.loads(text)
    settings = manifest["recipe"]["sample"]
    assert settings | {"seed": 3, "guidance_scale": 1.5, "num_images": 4} == settings
    assert manifest["images"] == [{"class": 2, "number": k} for k in (0, 1, 0, 1)]
    assert manifest["counts_per_class"][2] == manifest["num_images"] == 4
    assert len(manifest["weights"]["backbone"]) == 64
    for page in (text, json.dumps(job), *(client.get(path).body.decode() for path in ("/", "/docs", "/v1/model"))):
        assert "/tmp" not in page and "/home" not in page and "/root" not in page


def test_progress_is_told_from_the_beginning_whenever_one_asks(client: Any) -> None:
    job = client.draw(classes=[1], count=2, seed=8)
    for _ in range(2):
        events = [
            part.split("\ndata: ") for part in client.get(f"{job['url']}/events").body.decode().split("\n\n")[:-1]
        ]
        names = [name.removeprefix("event: ") for name, _ in events]
        assert names == ["state", "tokens", "image", "tokens", "image", "end"]
        tokens = [json.loads(data)["tokens"] for name, data in events if name == "event: tokens"]
        table = client.served.model.recipe.sample
        assert tokens == sample(client.served.model, [1, 1], table, 8).tokens.tolist()


def test_tokens_and_pictures_come_while_they_are_drawn(client: Any) -> None:
    told: list[tuple[int, int]] = []
    jobs = Jobs(Limits(), None)  # type: ignore[arg-type]
    wish = Drawing((3,), 2, 0, 0, client.served.sampler.table)
    job = Job("x" * 16, wish)
    jobs.tell = lambda job: told.append((len(job.tokens[0]), len(job.previews[1] or ())))  # type: ignore[method-assign]
    watch = Progress(client.served, jobs, [(job, 0), (job, 1)], 0.0)
    sampler = client.served.sampler
    tokens = sampler.tokens(sampler.rows([3, 3], [0, 1], [2.0, 2.0]), watch)
    # A row of four tokens each time; the last one is only known at the end.
    assert told == [(4, 2), (8, 2), (12, 2)]
    assert job.tokens == tokens[:, :12].tolist()
    shown = job.previews[1]
    assert shown is not None and shown[0] == 12 and pixels(shown[1]).shape == (8, 8, 3)
    jobs.cancel(job)
    with pytest.raises(InterruptedError):
        sampler.tokens(sampler.rows([3, 3], [0, 1], [2.0, 2.0]), watch)
