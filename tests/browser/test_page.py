"""The live page in a real browser: its numbers are the package's, and it does what a student does.

Without a Chromium, or without the runtime that `.ci/page.py --runtime` fetches, these are skipped,
and in CI that is a failure: see tests/skips.md.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path

import browsers
import numpy as np
import pytest
import torch

import datekit as dk
from datekit import noise
from datekit.shapes import captions, render, sample_scenes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / ".ci"))
import page as built  # noqa: E402

NO_PAGE = "needs Chromium, Playwright, and onnxruntime-web in build/runtime"
RHOS, PROMPTS, STEPS = (0.0, 0.3, 1.0, 3.0), 5, 10
NOISE = "async ([seed, count]) => [...(await import('./noise.js')).normal(seed, count)]"
JUDGE = """async ([prompts, file]) => {
    const {World} = await import("./world.js");
    const world = new World(await (await fetch("model/facts.json")).json());
    const numbers = new Float32Array(await (await fetch(file)).arrayBuffer());
    const size = numbers.length / prompts.length;
    return prompts.map((prompt, n) => (
        world.judge(world.parse(prompt), numbers.subarray(n * size, (n + 1) * size))
    ));
}"""
TOKENS = """async (prompts) => {
    const {World} = await import("./world.js");
    const world = new World(await (await fetch("model/facts.json")).json());
    return prompts.map((prompt) => world.tokens(world.parse(prompt).text));
}"""
LIT = """() => {
    window.lit = [];
    new MutationObserver(() => lit.push(
        [...document.querySelectorAll("#diagram .on")].map((button) => button.dataset.box).join(" ")
    )).observe(document.getElementById("diagram"), {attributes: true, subtree: true});
}"""
KEPT = """async () => {
    await navigator.serviceWorker.ready;
    const sizes = await (await fetch("files.json")).json();
    const own = ["./", ...Object.keys(sizes).filter((name) => !name.includes("/"))];
    const kept = await Promise.all(own.map((name) => caches.match(name)));
    return own.filter((_, n) => !kept[n]);
}"""
ASK = """([message, kind, on]) => new Promise((answer, refuse) => {
    window.testing ??= new Promise((ready) => {
        const worker = new Worker("worker.js", {type: "module"});
        worker.onmessage = ({data}) => data.kind === "ready" && ready([worker, data.how]);
        worker.postMessage({kind: "load", on});
    });
    window.testing.then(([worker, how]) => {
        worker.onmessage = ({data}) => {
            if (data.kind === "error") refuse(new Error(data.text));
            if (data.kind === kind) answer(JSON.parse(JSON.stringify({...data, how}, (_, value) =>
                ArrayBuffer.isView(value) ? [...value] : value)));
        };
        worker.postMessage(message);
    });
})"""
KINDS = """async ([asked, adapter]) => {
    const requestAdapter = async () => adapter;
    Object.defineProperty(navigator, "gpu", {value: {requestAdapter}, configurable: true});
    return (await import("./runtime.js")).kinds(asked);
}"""
CHECK = """async () => {
    const engine = await (await import("./engine.js")).load("plain", () => {});
    await engine.check();
    engine.facts.check.xt[5] += 0.01;
    return engine.check().then(() => "", (error) => error.message);
}"""
SOFTWARE = "enable-unsafe-webgpu use-webgpu-adapter=swiftshader"  # WebGPU on the CPU


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page as it is built, in a folder below the root of a site."""
    runtime = ROOT / "build" / "runtime"
    if not browsers.available() or not all((runtime / n).is_file() for n in built.RUNTIME_FILES):
        if os.environ.get("CI"):
            pytest.fail(f"CI {NO_PAGE}: see .ci/run")
        pytest.skip(NO_PAGE)
    path = tmp_path_factory.mktemp("site") / "some" / "live"
    built.build(path)
    return path


@pytest.fixture(scope="module")
def site(folder):
    """The address of the page on a static server."""
    with browsers.static(folder.parents[1]) as address:
        yield f"{address}some/live/"


@pytest.fixture(scope="module")
def page(site):
    """The page after its first pair of pictures. At its end nothing has gone wrong in it.

    The browser has a WebGPU that the CPU imitates, which the page takes only where it is asked to.
    """
    with browsers.page(width=1400, height=1000, flags=SOFTWARE) as page:
        page.on("console", lambda m: m.type == "error" and page.mistakes.append(m.text))
        foreign = []
        page.on(
            "request", lambda r: r.url.startswith((site, "blob:", "data:")) or foreign.append(r.url)
        )
        page.goto(site)
        drawn(page)
        yield page
        assert page.mistakes == []
        assert foreign == []


@pytest.fixture
def tab(page):
    """Another page of the same browser, whose mistakes are its own."""
    opened = page.context.browser.new_page()
    opened.set_default_timeout(300_000)
    yield opened
    opened.close()


def drawn(page) -> None:
    """Wait until both pictures are there."""
    page.wait_for_function("document.body.dataset.state === 'done'")


def set_rho(page, value: float) -> None:
    """Move the slider of rho as a drag does."""
    page.evaluate(
        """(value) => {
            const slider = document.getElementById("rho");
            slider.value = value;
            slider.dispatchEvent(new Event("input", {bubbles: true}));
        }""",
        value,
    )


def test_it_opens_with_a_picture_that_date_mends(page):
    assert page.inner_text("#status").endswith("is not right, with DATE right.")
    assert page.locator("#fixed-verdict .no").count() > 0
    assert page.locator("#date-verdict .no").count() == 0


def test_it_runs_with_threads_and_is_small(page, site):
    assert page.evaluate("crossOriginIsolated")  # by its service worker: the server sends no header
    assert "threads" in page.inner_text("#how")
    told = page.evaluate("fetch('files.json').then((answer) => answer.json())")
    assert sum(told.values()) < 30e6


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**40 + 3])
def test_the_noise_of_a_seed_is_the_packages(page, seed):
    wanted = noise.initial([seed], (4, 16, 16), torch.float32).flatten()
    torch.testing.assert_close(
        torch.tensor(page.evaluate(NOISE, [seed, 1024])), wanted, atol=2e-6, rtol=1e-5
    )


def test_its_judge_is_the_packages(page, folder):
    rng, scenes = np.random.default_rng(3), sample_scenes(500, 5)
    texts = [captions.caption(s, rng.choice(captions.families(s)), rng) for s in scenes]
    images = render(scenes)
    images[::2] = (images[::2] + 0.05 * torch.randn(images[::2].shape)).clamp(0, 1)
    asked = [*texts[1:], texts[0]]  # mostly false
    wanted = dk.shapes.judge(images, asked)
    (folder / "scenes.bin").write_bytes(images.numpy().tobytes())
    told = page.evaluate(JUDGE, [asked, "scenes.bin"])
    for ours, theirs in zip(wanted, told, strict=True):
        assert [(s["text"], s["holds"]) for s in theirs["statements"]] == list(ours.statements)
        seen = [(thing["colour"], thing["shape"]) for thing in theirs["things"]]
        assert seen == [thing.kind for thing in ours.things]


def test_its_tokens_are_the_packages(page):
    tokenizer = shipped()[0].pipe.tokenizer
    texts = []
    for family in captions.FAMILIES:
        for n, text in enumerate(dk.shapes.prompts("heldout", 80, seed=4, family=family)):
            spaced = f"  {text.upper().replace(' ', '  ')} "
            texts += [
                text,
                f"{text}.",
                (f"{text} ...", f". {text} . .", spaced, f"{text}{'.' * 20}")[n % 4],
            ]
    ends = {tokenizer.bos_token: "start", tokenizer.eos_token: "end"}
    for text, told in zip(texts, page.evaluate(TOKENS, texts), strict=True):
        ids = tokenizer(text, padding="max_length", truncation=True)["input_ids"]
        assert told["ids"] == ids, text
        words = [piece.removesuffix("</w>") for piece in tokenizer.convert_ids_to_tokens(ids)]
        read = [ends.get(word, word) for word in words]
        assert told["words"] == read[: read.index("end") + 1], text


@functools.cache
def shipped():
    """The model and its reward."""
    return dk.load("shapes"), dk.rewards.load("shapes-clip")


def sampled(prompts, seeds, rho, anchor="original"):
    """A run of the package with the page's settings."""
    backbone, reward = shipped()
    date = dk.DATE(reward, rho=rho, when=dk.every(2), anchor=anchor)
    return dk.Sampler(backbone, date, num_steps=STEPS).start(prompts, seeds=seeds)


def asked(prompt, seed, rho, anchor="original"):
    """The same as a message to the page's worker."""
    settings = {"prompt": prompt, "seed": seed, "rho": rho, "anchor": anchor}
    settings |= {"guidance": shipped()[0].recommended.guidance_scale, "steps": STEPS}
    settings |= {"when": [i % 2 == 0 for i in range(STEPS)], "exact": True}
    return {"kind": "run", "id": seed, "settings": settings}


def off(frame, picture) -> float:
    """How far a frame's pixels are from a picture (3, 64, 64), at most."""
    pixels = torch.tensor(frame["pixels"]).view(64, 64, 4)[..., :3] / 255
    return float((pixels - picture.permute(1, 2, 0)).abs().max())


@pytest.mark.parametrize("anchor", ["original", "running"])
def test_its_latents_and_pictures_are_the_samplers(page, anchor):
    prompts = dk.shapes.prompts("heldout", PROMPTS, seed=11, part="tune")
    for n, rho in enumerate(RHOS):
        seeds = [100 * n + k for k in range(PROMPTS)]
        run = sampled(prompts, seeds, rho, anchor).finish()
        for k, prompt in enumerate(prompts):
            told = page.evaluate(ASK, [asked(prompt, seeds[k], rho, anchor), "done", None])
            latents = torch.tensor(told["latents"][1]).view_as(run.state.xt[k])
            assert (latents - run.state.xt[k]).abs().max() < 1e-3, (prompt, rho)
            assert off(told["frames"][1], run.pixels[k]) < 2 / 255, (prompt, rho)


def test_its_first_step_on_webgpu_is_the_samplers(tab, site):
    """One step with an update, which takes a minute or two where the CPU imitates WebGPU.

    The engine has compared its latents and h with the package's before it says that it is ready.
    """
    (prompt,) = dk.shapes.prompts("heldout", 1, seed=12, part="tune")
    info = sampled([prompt], [3], rho=2.0).step()
    tab.goto(f"{site}style.css")  # beside the worker, with nothing else that computes
    told = tab.evaluate(ASK, [asked(prompt, 3, rho=2.0), "step", "webgpu"])
    assert told["how"] == "WebGPU"
    assert off(told["frames"][1], info.decode(info.x0bar_hat)[0].clamp(0, 1)) < 2 / 255


def test_it_takes_a_graphics_processor_and_none_that_is_imitated(page):
    real = {"info": {"vendor": "nvidia", "architecture": "ampere", "isFallbackAdapter": False}}
    for adapter, kinds in [
        (real, ["webgpu", "threads"]),
        ({"info": real["info"] | {"isFallbackAdapter": True}}, ["threads"]),
        ({"info": {"architecture": "swiftshader"}}, ["threads"]),
        (None, ["threads"]),
    ]:
        assert page.evaluate(KINDS, [None, adapter]) == kinds
    assert page.evaluate(KINDS, ["plain", real]) == ["plain"]
    with pytest.raises(Exception, match="webgpu, threads, plain"):
        page.evaluate(KINDS, ["cuda", real])


def test_where_webgpu_fails_webassembly_draws(tab, site, folder):
    missing = folder / "runtime" / "ort.webgpu.min.mjs"
    missing.rename(folder / "elsewhere")
    try:
        tab.goto(f"{site}?on=webgpu")
        drawn(tab)
    finally:
        (folder / "elsewhere").rename(missing)
    assert "since WebGPU does not" in tab.inner_text("#how")


def test_wrong_numbers_are_refused(page):
    assert "wrong" in page.evaluate(CHECK)


def test_a_student_drags_rho_scrubs_and_looks_inside(page):
    before = page.evaluate("document.getElementById('date').toDataURL()")
    set_rho(page, 6)
    page.wait_for_function("document.body.dataset.state !== 'done'")
    drawn(page)
    assert page.evaluate("document.getElementById('date').toDataURL()") != before
    page.locator("#step").fill("4")
    page.locator("#step").dispatch_event("change")
    assert page.inner_text("#step-says").startswith("4")
    for box in ("prompt", "c", "x0bar", "h", "grad", "moved"):
        page.locator(f"[data-box={box}]").click()
        page.locator("#inside h2").wait_for()
        assert page.inner_text("#inside")
    assert page.locator("#inside .strip figure").count() == 7
    page.locator("[data-box=moved]").click()
    assert page.locator("#inside").is_hidden()


def test_a_change_is_answered_soon(page):
    """Twenty steps of both; about 2 s on two idle cores, and more beside other tests."""
    page.evaluate(LIT)
    began = time.perf_counter()
    set_rho(page, 2)
    page.wait_for_function("document.body.dataset.state !== 'done'")
    drawn(page)
    spent = time.perf_counter() - began
    print(f"a pair of 20 steps after a change: {spent:.1f} s")
    assert spent < 30
    calls = [
        "x0bar h grad",
        "x0bar moved",
        "h",
        "",
    ]  # of the last step, in their order, and the end
    assert page.evaluate("lit")[-4:] == calls


def test_prompts_links_and_mistakes(page, site):
    page.locator("#prompt").fill("a pink circle")
    page.locator("#prompt").press("Enter")
    page.wait_for_function("document.body.dataset.state === 'error'")
    assert '"pink" is not a word' in page.inner_text("#problem")
    page.locator("#prompt").fill("A red circle  left of a blue square.")
    page.locator("#prompt").press("Enter")
    drawn(page)
    assert page.inner_text("#problem") == ""
    page.locator("#more summary").click()
    page.locator("[data-strip=early]").click()
    drawn(page)
    link, picture = page.url, page.evaluate("document.getElementById('date').toDataURL()")
    page.goto("about:blank")
    page.goto(link)
    drawn(page)
    assert page.evaluate("document.getElementById('date').toDataURL()") == picture
    assert page.locator("#strip [aria-pressed=true]").count() == 7


def test_a_link_with_values_that_no_control_has_changes_nothing(page):
    before = page.url
    page.evaluate("location.hash = 'p=&s=-1&r=99&g=&k=21&a=foo&d=foo&b=foo&w=12&x=1'")
    page.wait_for_function("(before) => location.href === before", arg=before)
    drawn(page)
    assert page.locator("#inside").is_hidden()


def test_a_box_that_is_closed_before_it_is_filled_stays_closed(page):
    page.evaluate("for (let n = 0; n < 2; n++) document.querySelector('[data-box=h]').click()")
    page.locator("[data-box=prompt]").click()
    page.locator("#inside h2").wait_for()
    page.locator("[data-box=prompt]").click()
    assert page.locator("#inside").is_hidden()


def test_it_is_kept_where_no_reload_is_needed(tab, folder):
    headers = {"Opener": "same-origin", "Embedder": "require-corp"}
    headers = {f"Cross-Origin-{name}-Policy": value for name, value in headers.items()}
    with browsers.static(folder, headers) as address:
        tab.goto(address)
        assert tab.evaluate(KEPT) == []
        assert tab.evaluate("[crossOriginIsolated, sessionStorage.length]") == [True, 0]


def test_it_reloads_without_a_network(page):
    page.context.set_offline(True)
    try:
        page.reload()
        drawn(page)
    finally:
        page.context.set_offline(False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1024, 1400])
def test_it_fits(page, width, scheme, tmp_path):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("DATEKIT_FIGURES"):
        page.screenshot(path=Path(folder) / f"live-{width}-{scheme}.png", full_page=True)
