"""The viewer in a browser, and the server under load: minutes, so not part of the default run.

Headless Chromium draws with a software WebGL. The scans are real: the CT of slicerio, and a DICOM series.
"""

import io
import json
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from meddelinea.cli.main import main
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.volume import Volume
from support.running_server import RunningServer
from support.scans import as_ct

pytestmark = pytest.mark.slow

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
OPTIONS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
TOKEN = "a-token-of-some-length"
PATIENCE_MS = 300_000
CANVASES = ("#axial", "#coronal", "#sagittal", "#solid")


@pytest.fixture(scope="module")
def scan() -> Path:
    slicerio = pytest.importorskip("slicerio")
    return Path(slicerio.__file__).parent / "data" / "CTChest4.nrrd"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server") / "jobs") as server:
        yield server


@pytest.fixture(scope="module")
def done(served: RunningServer, scan: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two jobs of the same part of the scan that are done."""
    whole, path = read_volume(scan), tmp_path_factory.mktemp("part") / "part.nii"
    write_volume(Volume(whole.array[:, :, :12], whole.affine), path)
    with httpx.Client(base_url=served.address, timeout=60) as client:
        ids = [client.post("/api/jobs", content=path.read_bytes()).json()["id"] for _ in range(2)]
        for identity in ids:
            while client.get(f"/api/jobs/{identity}").json()["state"] != "done":
                time.sleep(0.2)
    return ids


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is absent: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test where it logs an error, other than of a refused request, or asks another server."""
    context = browser.new_context(viewport={"width": 1000, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url.split("/")[2]) if request.url[:4] == "http" else None)
    yield page
    troubles = [text for text in troubles if "Failed to load resource" not in text and "GPU stall" not in text]
    assert troubles == []
    assert len(asked) == 1
    context.close()


def until(page: Any, condition: str) -> None:
    """Wait until a JavaScript expression is true; Playwright's own way is against the page's policy."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(300)


def go(page: Any, address: str) -> None:
    page.goto(address)
    until(page, "document.getElementById('version').textContent")
    page.evaluate(
        """() => {
          const status = document.getElementById('status');
          globalThis.said = [];
          new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });
        }"""
    )


def settle(page: Any) -> None:
    """Wait until the result of a job is shown."""
    until(
        page,
        "document.getElementById('status').textContent.startsWith('Done') "
        "|| document.getElementById('trouble').textContent",
    )
    assert page.inner_text("#trouble") == ""
    until(page, "document.querySelector('#jobs tr.open')")


def pixels(page: Any, canvas: str) -> NDArray[np.int16]:
    """(rows, columns, 3) of a canvas as it is seen, without its border."""
    page.wait_for_timeout(200)
    picture = Image.open(io.BytesIO(page.locator(canvas).screenshot())).convert("RGB")
    return np.asarray(picture).astype(np.int16)[4:-4, 4:-4]


def colourful(picture: NDArray[np.int16]) -> float:
    """Share of the pixels that are not grey: a CT is, the mask is not."""
    return float(np.mean(picture.max(axis=2) - picture.min(axis=2) > 30))


def alike(one: NDArray[np.int16], other: NDArray[np.int16]) -> bool:
    """Whether two pictures are the same, but for one pixel in a thousand that was composed otherwise."""
    return float(np.mean(abs(one - other).max(axis=2) > 0)) < 1e-3


def open_result(page: Any, served: RunningServer, job: str) -> None:
    """The page of a job that is done, as a bookmark opens it."""
    page.goto(f"{served.address}#job={job}")
    settle(page)


def set_opacity(page: Any, percent: int) -> None:
    page.locator("#opacity").fill(str(percent))


def download(page: Any, title: str, folder: Path) -> Path:
    with page.expect_download() as started:
        page.get_by_role("button", name=title, exact=True).click()
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def command_line(scan: Path, folder: Path) -> Volume:
    with pytest.raises(SystemExit) as stop:
        main(["predict", "-i", str(scan), "-o", str(folder / "expected.nii.gz"), "--quiet"])
    assert stop.value.code == 0
    return read_volume(folder / "expected.nii.gz")


def test_a_scan_is_uploaded_watched_seen_and_downloaded(
    page: Any, served: RunningServer, scan: Path, tmp_path: Path
) -> None:
    go(page, served.address)
    page.set_input_files("#file", scan)
    settle(page)
    said = page.evaluate("said")
    done = [int(text.split()[1]) for text in said if text.startswith("Segmenting")]
    assert done == sorted(done)
    assert len(set(done)) >= 2
    assert said[-1] == "Done: CTChest4.nrrd: CT, 128 × 128 × 34"

    shown = pixels(page, "#axial")
    set_opacity(page, 0)
    bare = pixels(page, "#axial")
    set_opacity(page, 100)
    full = pixels(page, "#axial")
    assert colourful(full) > colourful(shown) > colourful(bare) + 0.02
    assert bare.max() > 200  # the scan itself
    assert abs(full - bare).max() > 100

    until(page, "!document.getElementById('solid-note').textContent")
    solid = pixels(page, "#solid")
    page.get_by_role("button", name="show liver", exact=True).click()
    assert colourful(full) > colourful(pixels(page, "#axial")) + 0.01
    assert colourful(solid) > colourful(pixels(page, "#solid")) + 0.01
    page.get_by_role("button", name="Hide all").click()
    assert alike(pixels(page, "#axial"), bare)
    page.get_by_role("button", name="show liver alone").click()
    assert colourful(full) > colourful(pixels(page, "#axial")) > colourful(bare)
    page.get_by_role("button", name="Show all").click()
    assert alike(pixels(page, "#axial"), full)

    for view, canvas in (("Coronal", "#coronal"), ("Sagittal", "#sagittal"), ("3D", "#solid"), ("Axial", "#axial")):
        page.get_by_label(view, exact=True).check()
        assert colourful(pixels(page, canvas)) > 0.02
        assert [name for name in CANVASES if page.locator(name).is_visible()] == [canvas]

    mask = read_volume(download(page, "Mask (NIfTI)", tmp_path))
    expected = command_line(scan, tmp_path)
    assert (tmp_path / "CTChest4_mask.nii.gz").is_file()
    assert np.array_equal(mask.array, expected.array)
    assert np.allclose(mask.affine, expected.affine)
    measured = json.loads(download(page, "Measurements (JSON)", tmp_path).read_text())["organs"]
    reviewed = set()
    for row in page.locator("#organs tbody tr").all():
        organ = measured[row.locator(".go").inner_text()]
        note, volume, *_ = row.locator("td").all_inner_texts()
        millilitres, _, interval = volume.partition("\n")
        assert millilitres == (f"{organ['volume_ml']:.1f}" if organ["found"] else "")
        assert interval == " – ".join(f"{ml:.1f}" for ml in organ["interval_ml"] or ())
        assert ("to be reviewed" in note) == (organ["review_reasons"] == ["low_expected_dice"])
        assert ("not found" in note) == (not organ["found"])
        reviewed.add(organ["needs_review"])
    assert reviewed == {True, False}  # of thorax and upper abdomen some is seen, and some is not


def test_a_zipped_dicom_series_gives_the_same_mask(
    page: Any, served: RunningServer, data: Path, tmp_path: Path
) -> None:
    series = data / "totalsegmentator" / "ct_dicom"
    archive = Path(shutil.make_archive(str(tmp_path / "series"), "zip", series))
    go(page, served.address)
    page.set_input_files("#file", archive)
    settle(page)
    mask = read_volume(download(page, "Mask (NIfTI)", tmp_path))
    expected = command_line(series, tmp_path)
    assert mask.array.any()
    assert np.array_equal(mask.array, expected.array)
    assert np.allclose(mask.affine, expected.affine)


def test_a_folder_of_dicom_becomes_a_scan(page: Any, served: RunningServer, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "CD"
    shutil.copytree(data / "totalsegmentator" / "ct_dicom", folder / "knee")
    (folder / "autorun.inf").write_text("the burner's own viewer")
    go(page, served.address)
    page.set_input_files("#folder", folder)
    settle(page)
    assert "knee" in page.inner_text("#status")
    mask = read_volume(download(page, "Mask (NIfTI)", tmp_path))
    assert np.array_equal(mask.array, command_line(folder / "knee", tmp_path).array)


def test_the_page_is_used_with_the_keyboard_alone(page: Any, served: RunningServer, done: list[str]) -> None:
    open_result(page, served, done[0])
    assert page.evaluate("document.activeElement.id") == "axial"
    before, place = pixels(page, "#axial"), location(page)
    page.keyboard.press("PageUp")
    assert abs(pixels(page, "#axial") - before).max() > 20
    assert location(page)["axial"] == place["axial"] + 1
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")  # to the picture's left, which is the patient's right
    assert location(page) == {**place, "sagittal": place["sagittal"] + 1}
    for key, canvas in (("c", "#coronal"), ("s", "#sagittal"), ("d", "#solid"), ("a", "#axial")):
        page.keyboard.press("Escape")
        page.locator("#axial").focus()
        page.keyboard.press(key)
        page.locator(canvas).wait_for()
        assert [name for name in CANVASES if page.locator(name).is_visible()] == [canvas]
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Mouse, fingers and keys").is_visible()
    page.keyboard.press("Escape")

    def focus_on(identity: str) -> None:
        for _ in range(120):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id || document.activeElement.name") == identity:
                return
        raise AssertionError(f"the Tab key does not reach {identity}")

    focus_on("opacity")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#opacity-value") == "25 %"
    focus_on("view")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#pictures").get_attribute("data-view") == "all"
    focus_on("solid")
    until(page, "!document.getElementById('solid-note').textContent")
    before = pixels(page, "#solid")
    page.keyboard.press("ArrowRight")
    assert abs(pixels(page, "#solid") - before).max() > 20
    focus_on("screen")
    page.keyboard.press("Enter")
    focus_on("file")
    with page.expect_file_chooser():
        page.keyboard.press("Space")


def location(page: Any) -> dict[str, int]:
    """The number of the slice in each plane."""
    page.wait_for_timeout(200)
    return {name: int(page.inner_text(f"#{name}-slice").split()[0]) for name in ("axial", "coronal", "sagittal")}


def test_the_mouse_turns_slices_moves_the_cross_hair_and_changes_grey_values(
    page: Any, served: RunningServer, done: list[str]
) -> None:
    open_result(page, served, done[0])
    box = page.locator("#axial").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    place = location(page)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -120)
    assert location(page) == {**place, "axial": place["axial"] + 1}
    page.mouse.wheel(0, 120)
    assert location(page) == place
    page.locator("#axial ~ input").fill("3")
    assert location(page) == {**place, "axial": 3}

    page.mouse.click(x - 20, y)
    right = location(page)
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=3)
    page.mouse.up()
    assert location(page)["sagittal"] < right["sagittal"]

    readout, before = page.inner_text("#location"), pixels(page, "#axial")
    page.mouse.down(button="right")
    page.mouse.move(x + 90, y + 60, steps=3)
    page.mouse.up(button="right")
    assert page.locator("#window").input_value() == "manual"
    assert abs(pixels(page, "#axial") - before).max() > 10
    assert page.inner_text("#location") == readout
    page.get_by_label("Drag").select_option("slices")
    slices = location(page)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 60, steps=3)
    page.mouse.up()
    assert location(page)["axial"] > slices["axial"]
    assert {**location(page), "axial": 0} == {**slices, "axial": 0}

    page.get_by_role("button", name="Reset").click()
    assert page.locator("#window").input_value() == "Abdomen"
    page.mouse.dblclick(x, y)
    assert [name for name in CANVASES if page.locator(name).is_visible()] == ["#axial"]
    assert page.locator("#window").input_value() == "Abdomen"  # what the list says is what is shown
    page.mouse.dblclick(x, y)
    assert all(page.locator(name).is_visible() for name in CANVASES)


def test_an_organ_is_gone_to_and_read_out(page: Any, served: RunningServer, done: list[str]) -> None:
    open_result(page, served, done[0])
    page.get_by_role("button", name="liver", exact=True).click()
    location(page)
    assert page.inner_text("#location").startswith("liver, ")
    assert " HU, axial " in page.inner_text("#location")
    with_crosshair = pixels(page, "#axial")
    page.get_by_role("checkbox", name="Cross-hair").uncheck()
    assert colourful(pixels(page, "#axial")) < colourful(with_crosshair)
    page.get_by_label("Drawn as").select_option("outline")
    outline = pixels(page, "#axial")
    page.get_by_label("Drawn as").select_option("fill")
    assert colourful(outline) < colourful(pixels(page, "#axial"))


def test_a_mask_is_corrected_by_hand_into_a_result_of_its_own(
    page: Any, served: RunningServer, done: list[str]
) -> None:
    client = httpx.Client(base_url=served.address, timeout=60)
    mask = client.get(f"/api/jobs/{done[0]}/files/mask.nii.gz").content
    open_result(page, served, done[0])
    page.get_by_role("button", name="liver", exact=True).click()
    page.get_by_label("Axial", exact=True).check()
    page.get_by_role("button", name="Correct this mask").click()
    page.locator("#brush-organ").select_option("spleen")
    page.get_by_label("leave other organs as they are").uncheck()
    page.get_by_label("Diameter").fill("30")
    unpainted = pixels(page, "#axial")

    def paint() -> None:
        box = page.locator("#axial").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 40, y + 10)
        page.mouse.up()

    paint()
    until(page, "document.getElementById('painted').textContent.includes('spleen +')")
    assert not alike(pixels(page, "#axial"), unpainted)
    page.get_by_role("button", name="Undo").click()
    assert page.inner_text("#painted") == "Nothing is changed yet."
    assert page.get_by_role("button", name="Save as a new result").is_disabled()
    page.get_by_role("button", name="Redo").click()
    painted = page.inner_text("#painted")
    page.get_by_label("Your words on it").fill("a trial stroke")
    page.get_by_role("button", name="Save as a new result").click()
    until(page, "document.getElementById('corrected').textContent.includes('a trial stroke')")
    assert page.locator("#correcting").is_hidden()
    assert painted.partition(";")[0] in page.inner_text("#corrected") or "spleen +" in page.inner_text("#corrected")

    identity = page.url.partition("#job=")[2]
    made = client.get(f"/api/jobs/{identity}").json()
    assert (made["kind"], made["parent"], made["comment"]) == ("correction", done[0], "a trial stroke")
    assert made["changes"]["spleen"]["added_voxels"] > 0
    assert client.get(f"/api/jobs/{done[0]}/files/mask.nii.gz").content == mask  # the model's own stays

    page.get_by_role("button", name="Correct this mask").click()
    paint()
    page.get_by_role("button", name="Discard").click()
    page.get_by_role("button", name="Keep it").click()
    assert page.locator("#correcting").is_visible()
    page.get_by_role("button", name="Discard").click()
    page.get_by_role("button", name="Leave it").click()
    page.locator("#correcting").wait_for(state="hidden")

    page.route("**/api/learnings?**", lambda route: route.continue_(url=f"{route.request.url}&steps=2"))
    page.locator("#screen").click()
    page.locator("#learn-start").click()
    page.get_by_role("dialog").get_by_role("button", name="Learn").click()
    until(page, "document.getElementById('learnings').textContent.includes('adapted-1 is offered: not compared')")
    until(page, "!document.getElementById('model-field').hidden")
    assert page.locator("#model-choice option").all_inner_texts() == ["small", "adapted-1, learnt here"]
    client.delete("/api/models/adapted-1")
    client.delete(f"/api/jobs/{identity}")
    client.close()


def test_the_report_opens_in_a_tab_and_prints_on_two_pages(
    page: Any, served: RunningServer, done: list[str], tmp_path: Path
) -> None:
    open_result(page, served, done[0])
    with page.context.expect_page() as opened:
        page.get_by_role("button", name="Open the report").click()
    report = opened.value
    report.wait_for_load_state()
    assert "organs found" in report.inner_text("header")
    assert report.evaluate("getComputedStyle(document.querySelector('.card')).display") == "block"
    assert (
        report.evaluate("getComputedStyle(document.querySelector('.pictures')).display") == "flex"
    )  # it has its style
    assert report.evaluate("document.documentElement.scrollWidth <= innerWidth")
    report.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page[^s]", (tmp_path / "report.pdf").read_bytes())) <= 2


def test_no_one_is_kept_out(browser: Any, served: RunningServer, done: list[str], tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    report = httpx.get(f"{served.address.rstrip('/')}/api/jobs/{done[0]}/files/report.html").text
    (tmp_path / "report.html").write_text(report)
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, bypass_csp=True)  # the checker's script is not the page's
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        found = {}
        go(page, served.address)
        found["worklist"] = axe.run(page)
        page.goto(f"{served.address}#job={done[0]}")
        page.reload()
        settle(page)
        found["result"] = axe.run(page)
        page.keyboard.press("?")
        found["help"] = axe.run(page)
        page.goto((tmp_path / "report.html").as_uri())
        found["report"] = axe.run(page)
        assert {name: [v["id"] for v in result.response["violations"]] for name, result in found.items()} == {
            name: [] for name in found
        }
        context.close()


def test_a_narrow_window_shows_all_and_scrolls(page: Any, served: RunningServer, done: list[str]) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    open_result(page, served, done[0])
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for view, canvas in (("Axial", "#axial"), ("Coronal", "#coronal"), ("3D", "#solid")):
        page.get_by_label(view, exact=True).check()
        until(page, "!document.getElementById('solid-note').textContent")
        box = page.locator(canvas).bounding_box()
        assert box["width"] > 300
        assert box["height"] < 600  # the finger finds something else
        assert colourful(pixels(page, canvas)) > 0.02
    assert page.locator("#axial").evaluate("canvas => getComputedStyle(canvas).touchAction") == "pan-y"
    assert page.evaluate("document.documentElement.scrollHeight") > 740


def test_where_the_mask_may_be_wrong_is_shown(page: Any, served: RunningServer, done: list[str]) -> None:
    open_result(page, served, done[0])
    assert not page.locator("#earlier-choice").is_visible()
    assert "wrong" not in page.inner_text("#location")
    mask = pixels(page, "#axial")
    page.get_by_label("where it may be wrong").check()
    until(page, "document.getElementById('location').textContent.startsWith('wrong with a probability of')")
    assert "20 %" in page.inner_text("#legend")
    set_opacity(page, 100)
    unsure = pixels(page, "#axial")
    set_opacity(page, 0)
    bare = pixels(page, "#axial")
    assert colourful(bare) + 0.002 < colourful(unsure)
    set_opacity(page, 30)
    page.get_by_label("this result").check()
    assert np.array_equal(pixels(page, "#axial"), mask)
    assert "wrong" not in page.inner_text("#location")
    page.get_by_label("where it may be wrong").check()
    chances = []
    for _ in range(2):
        page.get_by_role("button", name="Next doubtful place").click()
        location(page)
        chances.append(int(page.inner_text("#location").split(" %")[0].split()[-1]))
    assert page.inner_text("#doubt-number").startswith("2 of ")
    assert max(chances) > 20


def test_a_result_is_compared_with_an_earlier_one(page: Any, served: RunningServer, done: list[str]) -> None:
    open_result(page, served, done[1])
    assert "no other result" in page.locator("#earlier option").first.inner_text()
    page.locator("#earlier").select_option(done[0])
    page.locator("#earlier-choice").wait_for()
    _, *columns = page.locator("#organs thead th").all_inner_texts()
    cells = page.locator("#organs tbody tr", has_text="liver").locator("td").all_inner_texts()
    liver = dict(zip(columns, cells, strict=True))
    assert (liver["change ml"], liver["Dice"]) == ("0.0", "1.000")
    assert "the same, voxel for voxel" in page.inner_text("#compared")
    ours = pixels(page, "#axial")
    page.get_by_label("the other result").check()
    assert np.array_equal(pixels(page, "#axial"), ours)
    page.get_by_label("where they differ").check()
    differences = pixels(page, "#axial")
    set_opacity(page, 0)
    assert np.array_equal(pixels(page, "#axial"), differences)  # there are none
    set_opacity(page, 30)
    page.get_by_label("this result").check()
    page.get_by_label("side by side").check()
    page.locator("#twin").hover()
    page.mouse.wheel(0, 120)
    location(page)
    assert page.inner_text("#twin-slice") == page.inner_text("#axial-slice")
    assert colourful(pixels(page, "#twin")) > 0.02


def test_refusals_and_cancelling_are_told(page: Any, served: RunningServer, scan: Path, tmp_path: Path) -> None:
    go(page, served.address)
    page.set_input_files("#file", {"name": "letter.nii", "mimeType": "", "buffer": b"Dear colleague"})
    until(page, "document.getElementById('trouble').textContent")
    assert "not a NIfTI" in page.inner_text("#trouble")
    volume = read_volume(scan)
    write_volume(Volume((volume.array / 3000.0).astype(np.float32), volume.affine), tmp_path / "grey.nii.gz")
    page.set_input_files("#file", tmp_path / "grey.nii.gz")
    until(page, "document.getElementById('trouble').textContent.includes('refused')")
    assert "pass the original CT" in page.inner_text("#trouble")
    page.wait_for_timeout(2000)  # in which the server is asked again
    assert "pass the original CT" in page.inner_text("#trouble")
    assert "not read" not in page.inner_text("#jobs")
    page.set_input_files("#file", scan)
    until(page, "document.getElementById('status').textContent.match(/^(Waiting|Reading|Segmenting)/)")
    page.locator("#cancel").click()
    page.get_by_role("button", name="Cancel it").click()
    until(page, "document.getElementById('trouble').textContent.includes('cancelled')")


def test_several_scans_are_sent_at_once_and_the_worklist_keeps_up(
    page: Any, served: RunningServer, scan: Path, tmp_path: Path
) -> None:
    whole, paths = read_volume(scan), [tmp_path / "one.nii", tmp_path / "two.nii"]
    for path in paths:
        write_volume(Volume(whole.array[:, :, :8], whole.affine), path)
    go(page, served.address)
    page.set_input_files("#file", paths)
    shown = "document.getElementById('scan-name').textContent.startsWith('one.nii')"
    until(page, shown)
    page.locator("#screen").click()
    until(page, "[...document.querySelectorAll('#jobs tr.done .name')].some(cell => cell.textContent.includes('two'))")
    page.reload()
    until(page, shown)  # names outlast a reload
    until(page, "[...document.querySelectorAll('#jobs tr.done .thumbnail img')].some(image => image.naturalWidth)")
    page.locator("#screen").click()
    with httpx.Client(base_url=served.address, timeout=60) as client:
        identity = client.post("/api/jobs", content=paths[0].read_bytes()).json()["id"]
    page.locator(f'#jobs [data-key$="{identity}"]').first.wait_for()

    page.get_by_role("button", name="Delete one.nii").click()
    page.get_by_role("button", name="Keep it").click()
    assert page.get_by_role("button", name="Delete one.nii").count() == 1
    page.get_by_role("button", name="Delete one.nii").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    until(page, "!document.querySelector('[aria-label^=\"Delete one.nii\"]')")
    assert "#job=" not in page.url
    assert page.locator("#screen").is_hidden()  # what is deleted is not shown any more


def test_the_page_connects_again(page: Any, tmp_path: Path) -> None:
    with RunningServer(tmp_path / "jobs") as server:
        port = server.address.rstrip("/").rpartition(":")[2]
        go(page, server.address)
    until(page, "document.getElementById('connection').textContent.includes('Connecting again')")
    with RunningServer(tmp_path / "jobs", "--port", port):
        until(page, "!document.getElementById('connection').textContent")


def test_a_token_lets_in_and_nothing_else_is_kept_by_the_browser(page: Any, scan: Path, tmp_path: Path) -> None:
    with RunningServer(tmp_path / "jobs", "--token", TOKEN) as server:
        assert TOKEN not in server.printed
        page.goto(server.address)
        page.locator("#token").fill("wrong")
        page.keyboard.press("Enter")
        until(page, "document.getElementById('trouble').textContent")
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        until(page, "document.getElementById('version').textContent")
        page.set_input_files("#file", scan)
        settle(page)
        kept = page.evaluate("({ ...sessionStorage })")
        names = json.loads(kept.pop("names"))  # for this tab alone
        assert list(names.values()) == ["CTChest4.nrrd"]
        assert kept == {"token": TOKEN}
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []
        page.goto(f"{server.address}#token={TOKEN}")
        page.reload()
        until(page, "document.getElementById('version').textContent")
        assert TOKEN not in page.url


def result(client: httpx.Client, content: bytes, folder: Path) -> tuple[str, str, NDArray[Any] | None]:
    """State, message and mask of an upload, followed to its end."""
    reply = client.post("/api/jobs", content=content)
    if reply.status_code != 201:
        return f"HTTP {reply.status_code}", reply.json()["detail"], None
    job = reply.json()
    while job["state"] in ("queued", "running"):
        time.sleep(1.0)
        job = client.get(f"/api/jobs/{job['id']}").json()
    if job["state"] != "done":
        return job["state"], job["message"], None
    path = folder / f"{job['id']}.nii.gz"
    path.write_bytes(client.get(f"/api/jobs/{job['id']}/files/mask.nii.gz").content)
    return "done", "", read_volume(path).array


def slabs(scan: Path, folder: Path) -> list[tuple[Volume, bytes]]:
    """14 different parts of the scan, and their files: NIfTI, NRRD and compressed NIfTI in turn."""
    whole = read_volume(scan)
    made = []
    for first in range(14):
        path = folder / f"part{first}{('.nii', '.nrrd', '.nii.gz')[first % 3]}"
        write_volume(Volume(whole.array[:, :, first : first + 20], whole.affine), path)
        made.append((read_volume(path), path.read_bytes()))
    return made


def test_sixteen_uploads_at_once_of_which_two_are_bad(served: RunningServer, scan: Path, tmp_path: Path) -> None:
    good = slabs(scan, tmp_path)
    grey = Volume((good[0][0].array / 3000.0).astype(np.float32), good[0][0].affine)
    write_volume(grey, tmp_path / "grey.nii.gz")
    contents = [content for _, content in good]
    contents[5:5] = [(tmp_path / "grey.nii.gz").read_bytes()]
    contents[11:11] = [b"\x89PNG\r\n\x1a\n" + bytes(1000)]
    results: dict[int, tuple[str, str, NDArray[Any] | None]] = {}

    def send(number: int) -> None:
        with httpx.Client(base_url=served.address, timeout=60) as client:
            results[number] = result(client, contents[number], tmp_path)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = results.pop(5), results.pop(11)
    assert refused[0][0] == "refused"
    assert "pass the original CT" in refused[0][1]
    assert refused[1][0] == "HTTP 415"
    assert "not a NIfTI" in refused[1][1]
    model = load_model("small")
    assert len(results) == 14
    for (volume, _), (_, (state, _, mask)) in zip(good, sorted(results.items()), strict=True):
        assert state == "done"
        assert mask is not None
        assert np.array_equal(mask, segment(model, as_ct(volume)).mask.array)


def test_jobs_survive_a_power_cut(scan: Path, tmp_path: Path) -> None:
    good = slabs(scan, tmp_path)[:3]
    server = RunningServer(tmp_path / "jobs")
    with httpx.Client(base_url=server.address, timeout=60) as client:
        ids = [client.post("/api/jobs", content=content).json()["id"] for _, content in good]
        while client.get(f"/api/jobs/{ids[0]}").json()["slices_done"] == 0:
            time.sleep(0.02)
    server.kill()
    model = load_model("small")
    with RunningServer(tmp_path / "jobs") as server, httpx.Client(base_url=server.address, timeout=60) as client:
        for (volume, _), identity in zip(good, ids, strict=True):
            while (job := client.get(f"/api/jobs/{identity}").json())["state"] in ("queued", "running"):
                time.sleep(0.1)
            assert job["state"] == "done"
            path = tmp_path / "mask.nii.gz"
            path.write_bytes(client.get(f"/api/jobs/{identity}/files/mask.nii.gz").content)
            assert np.array_equal(read_volume(path).array, segment(model, as_ct(volume)).mask.array)


def test_the_wheel_holds_the_page(tmp_path: Path) -> None:
    build = pytest.importorskip("hatchling.builders.wheel")
    wheel = next(build.WheelBuilder(str(Path(__file__).parents[2])).build(directory=str(tmp_path)))
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    static = "meddelinea/serving/static/"
    assert {static + "index.html", static + "niivue/niivue.umd.js", static + "niivue/LICENSES.txt"} <= names
