"""The page in headless Chromium: at desktop and phone widths, and by keyboard alone."""

from __future__ import annotations

import io
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rearkit.sampling.sampler import sample

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)"),
]
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, chromium: Any, client: Any) -> Iterator[Any]:
    """The page, freshly opened; what its scripts complain of fails the test."""
    yield from opened_page(chromium, client.port, *WIDTHS[request.param])


def opened_page(chromium: Any, port: int, width: int, height: int) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": width, "height": height}, permissions=["clipboard-read"])
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    # Of answers that a test makes fail, the browser says this itself.
    own = "Failed to load resource"
    opened.on("console", lambda said: None if said.text.startswith(own) else complaints.append(said.text))
    opened.goto(f"http://127.0.0.1:{port}/")
    yield opened
    # Nothing is cut off at the side.
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
    assert complaints == []


def finished(page: Any, count: int) -> None:
    """Wait for so many images of finished requests."""
    page.locator(".job.done figure.done img").nth(count - 1).wait_for()


def shown(page: Any, client: Any, job: int = 0) -> np.ndarray:
    """The images of a request as the page shows them, the newest first."""
    sources = (
        page.locator(".job").nth(job).locator("figure.done img").evaluate_all("found => found.map(one => one.src)")
    )
    contents = [urllib.request.urlopen(source).read() for source in sources]
    return np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents])


def test_by_keyboard_alone(page: Any, client: Any) -> None:
    press = page.keyboard.press

    def to(selector: str) -> None:
        for _ in range(80):
            if page.evaluate("which => document.activeElement.matches(which)", selector):
                return
            press("Tab")
        raise AssertionError(f"the Tab key does not lead to {selector}")

    to("#class")
    page.keyboard.type("s")
    assert page.locator("#class-list li").all_inner_texts() == ["six\n6", "seven\n7"]
    press("ArrowDown")
    assert page.get_attribute("#class", "aria-activedescendant") == "class-7"
    press("Enter")
    to("#seed")
    page.keyboard.type("5")
    press("Enter")
    model = client.served.model
    wanted = sample(model, [7] * 4, seed=5, numbers=range(4)).images
    finished(page, 4)
    assert np.array_equal(shown(page, client), wanted)

    # One of them, in part: from the image to the brush, and drawn again.
    to("figure .edit")
    press("Enter")
    page.wait_for_selector("#canvas:focus")
    assert page.locator("#go").inner_text() == "Draw anew"
    press("ArrowDown")
    press("Space")
    says = page.locator("#brush-says").inner_text()
    assert (count := re.fullmatch(r"Column \d, row \d\. (\d+) of 16 tokens are drawn anew\.", says))
    assert 0 < int(count[1]) < 16
    to("#go")
    press("Enter")
    finished(page, 8)
    edited = shown(page, client)
    assert edited.shape == wanted.shape and len(np.unique(edited.reshape(4, -1), axis=0)) > 1
    assert np.array_equal(edited[0, 0, 0], wanted[0, 0, 0])  # a corner that nobody painted


def test_a_reload_loses_no_request(page: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is on its way when the page is left is sent again.
    page.route("**/v1/images", lambda route: route.abort())
    page.click("#go")
    page.wait_for_selector(".job")
    page.unroute("**/v1/images")
    page.reload()
    finished(page, 4)
    # What the server has is shown again.
    page.reload()
    finished(page, 4)
    assert np.array_equal(shown(page, client), sample(client.served.model, [0] * 4, numbers=range(4)).images)
    page.click(".job .remove")
    page.reload()
    assert page.locator(".job").count() == 0 and page.locator("#empty").is_visible()


def test_a_link_draws_the_same(page: Any, client: Any, tmp_path: Path) -> None:
    page.click("#more summary")
    for name, value in {"guidance_scale": "2.5", "temperature": "0.7", "top_k": "5", "seed": "9", "count": "2"}.items():
        page.fill(f"#{name}", value)
    page.fill("#class", "nine")
    page.click("#go")
    finished(page, 2)
    first = shown(page, client)
    link = page.get_attribute(".job .link", "href")
    with page.expect_download() as download:
        page.click(".job .manifest")
    download.value.save_as(tmp_path / "manifest.json")
    assert '"temperature": 0.7' in (tmp_path / "manifest.json").read_text()
    page.goto(f"http://127.0.0.1:{client.port}{link}")
    finished(page, 4)
    assert np.array_equal(shown(page, client), first) and np.array_equal(shown(page, client, 1), first)
    assert page.evaluate("location.search") == ""  # so that a reload does not draw once more
    assert page.input_value("#temperature") == "0.7" and page.input_value("#class") == "nine"


def test_a_photo_is_painted_on_and_rebuilt(page: Any, client: Any, tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    page.click("text=Edit a photo")
    page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_selector("#easel:not([hidden])")
    page.click("#go")
    assert page.locator("#says").inner_text() == "Paint what is to be drawn anew."
    box = page.locator("#canvas").bounding_box()
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.8)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.95, box["y"] + box["height"] * 0.8)
    page.mouse.up()
    assert page.locator("#brush-says").inner_text() == "2 of 16 tokens are drawn anew."
    page.click("#undo")
    page.click("[data-half=bottom]")
    page.click("#go")
    finished(page, 4)
    square = np.asarray(Image.open(io.BytesIO(_photo(page, client))).convert("RGB"))
    assert all(np.array_equal(image[:4], square[:4]) for image in shown(page, client))
    page.click("text=Reconstruct")
    page.click("#go")
    finished(page, 8)
    assert page.locator(".job figcaption .name").all_inner_texts()[:4] == [
        "original", "tokens", "reconstruction", "difference",
    ]  # fmt: skip
    assert re.match(r"PSNR \d+\.\d\d dB · SSIM ", page.locator(".job .standing").first.inner_text())
    assert np.array_equal(shown(page, client)[0], square)


def _photo(page: Any, client: Any) -> bytes:
    found = page.evaluate("JSON.parse(sessionStorage['rearkit-requests']).at(-1).body.photo")
    content: bytes = client.get(f"/v1/photos/{found}.png").body
    return content


def test_a_full_server_is_waited_for(page: Any, client: Any) -> None:
    answers = iter([429, 429])

    def busy(route: Any) -> None:
        code = next(answers, None)
        if code is None:
            route.continue_()
        else:
            route.fulfill(status=code, headers={"Retry-After": "1"}, body='{"error": "full"}')

    page.route("**/v1/images", busy)
    page.click("#go")
    page.wait_for_selector("text=Many wait already; tries again in 1 s")
    finished(page, 4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_told_from_its_ground(scheme: str, chromium: Any, client: Any) -> None:
    """WCAG's contrast of 4.5 for all text that is shown."""
    page = chromium.new_page(color_scheme=scheme)
    page.goto(f"http://127.0.0.1:{client.port}/")
    page.click("#more summary")
    pairs = page.evaluate(COLOURS)
    page.close()
    assert len(pairs) > 20
    for text, ink, ground in pairs:
        lighter, darker = sorted((_luminance(ink), _luminance(ground)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ink, ground)


COLOURS = """() => [...document.querySelectorAll("body *")].filter(
  (one) => one.checkVisibility() && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
).map((one) => {
  let ground = one;
  while (ground && /, 0\\)$|transparent/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
  const own = getComputedStyle(one), under = getComputedStyle(ground ?? document.body);
  return [one.textContent.trim(), own.color, under.backgroundColor];
})"""


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_images_that_are_no_squares(chromium: Any, tall: Any) -> None:
    """Frames, tokens and the brush have 16 × 8 pixels and 8 rows of 4 tokens."""
    for page in opened_page(chromium, tall.port, *WIDTHS["desktop"]):
        page.locator("#count").fill("2")
        page.locator("#go").click()
        finished(page, 2)
        frame = page.locator("figure .frame").first.bounding_box()
        assert frame["height"] == pytest.approx(2 * frame["width"], abs=2)
        raster = page.locator("figure canvas").first
        assert raster.evaluate("one => [one.width, one.height]") == [8, 16]
        # The last token of all has its colour in the last field of the last row.
        assert raster.evaluate("one => one.getContext('2d').getImageData(7, 15, 1, 1).data[3]") == 255
        assert np.array_equal(shown(page, tall), sample(tall.served.model, [0, 0], None, 0, numbers=[0, 1]).images)
        page.locator("figure .edit").first.click()
        page.get_by_role("button", name="Lower half").click()
        page.get_by_text("16 of 32 tokens are drawn anew.").wait_for()
        page.locator("#go").click()
        page.locator(".job").nth(1).wait_for()
        finished(page, 4)
        kept = shown(page, tall)[:, :6]
        assert (kept == shown(page, tall, 1)[:1, :6]).all()
