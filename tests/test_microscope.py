"""The microscope's page: the model and the tokenizer in a browser equal those in Python, and its controls do what they say.

Needs Chromium or Chrome: where there is none, only what Python does is tested.
"""

from __future__ import annotations

import base64
import html
import json
import random
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer, UserError, generate
from minimoe.cli import app
from minimoe.data import documents, load_tokenizer
from minimoe.hub import load_pretrained
from minimoe.microscope import build_page
from minimoe.microscope.browser import BROWSERS, find_browser, measure_page
from minimoe.microscope.page import MARK, samples
from minimoe.quant import dequantize_model, quantize_model
from minimoe.quant.layers import QuantEmbed, QuantExperts, QuantLinear

BROWSER = find_browser()
browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)} is installed")
LENGTH = 48
MODES = ("float", "int8", "w8a8", "fp4")


def run_in_browser(folder, page: str, body: str, data: object = None, milliseconds: int = 0):
    """What an async function with this body returns, run at the end of the page; the console must stay empty."""
    given = base64.b64encode(json.dumps(data).encode()).decode()
    script = f"""<script>(async () => {{ const given = JSON.parse(new TextDecoder().decode(bytesOf("{given}")));
      const bytes = (array) => btoa(Array.from(new Uint8Array(array.buffer), (b) => String.fromCharCode(b)).join(""));
      const settled = async () => {{ do await pause(); while (app.busy || app.comparing); }};
      const run = async () => {{ {body} }};
      const result = await run().catch((error) => ({{ error: `${{error.stack}}` }}));
      const box = document.createElement("pre"); box.id = "result"; box.textContent = JSON.stringify(result);
      document.body.append(box); }})();</script></body>"""
    path = folder / "page.html"
    path.write_text(page.replace("</body>", script), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'user'}",
    ]
    options += [f"--virtual-time-budget={milliseconds}"] if milliseconds else []
    out = subprocess.run([BROWSER, *options, "--dump-dom", path.as_uri()], capture_output=True, timeout=120, check=True)
    log = [line for line in out.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    assert log == []
    found = re.search('<pre id="result">(.*?)</pre>', out.stdout.decode(), re.DOTALL)
    assert found, out.stdout.decode()[-2000:]
    result = json.loads(html.unescape(found[1]))
    assert not (isinstance(result, dict) and "error" in result), result["error"]
    return result


@pytest.fixture(scope="module")
def nano():
    model, tokenizer, _ = load_pretrained("nano")
    return model, tokenizer, build_page(model, tokenizer, name="nano")


@pytest.fixture(scope="module")
def byte_model():
    """A float model with a head of its own, softmax scores and no shared expert, whose weights bfloat16 can hold."""
    config = ModelConfig.preset("nano")
    moe = MoEConfig(32, 32, num_experts=4, top_k=2, score="softmax", routed_scaling_factor=2.0)
    attention = GroupedQueryConfig(num_heads=2, num_kv_heads=1, head_dim=16)
    config = ModelConfig(257, 32, 2, attention=attention, moe=moe, context_length=32, tie_embeddings=False)
    model = MoETransformer(config, rngs=nnx.Rngs(5))
    rounded = jax.tree.map(lambda p: (3 * p).astype(jnp.bfloat16).astype(jnp.float32), nnx.state(model, nnx.Param))
    nnx.update(model, rounded)
    return model


READ = """const model = mode => { app.model.use(mode); return app.model; }, out = {};
  for (const mode of given.modes) out[mode] = given.rows.map((row) => {
    const cache = model(mode).newCache(), steps = row.map((token) => model(mode).step(token, cache, null));
    return { routes: steps.map(({ routes }) => routes.map(({ experts }) => experts)),
             weights: steps.map(({ routes }) => routes.map(({ weights }) => Array.from(weights))),
             logits: steps.map(({ hidden }) => bytes(model(mode).logits(hidden))) }; });
  return out;"""


def logits_of(found):
    """``[rows, L, V]``."""
    return np.asarray([[np.frombuffer(base64.b64decode(step), np.float64) for step in row["logits"]] for row in found])


def compare(found, model, rows):
    """The largest difference of a logit; experts and weights must be the same, up to the order of equals."""
    logits, routing = jax.jit(lambda model, rows: model(rows))(model, jnp.asarray(rows, jnp.int32))
    layers = (len(rows), len(rows[0]), -1)
    for layer, record in enumerate(routing):
        experts = np.asarray([[step[layer] for step in row["routes"]] for row in found])
        np.testing.assert_array_equal(experts, np.asarray(record.experts).reshape(layers))
        weights = np.asarray([[step[layer] for step in row["weights"]] for row in found])
        np.testing.assert_allclose(weights, np.asarray(record.weights).reshape(layers), atol=1e-4)
    return float(np.abs(logits_of(found) - np.asarray(logits)).max())


def exact_weights(floats, quantized):
    """The oracle's weights: every code times its scale, in float64; the rest as it is."""
    weights = {"/".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(floats))}
    exact = lambda w: np.swapaxes(np.asarray(w.codes, np.float64) * np.asarray(w.scale, np.float64), -1, -2)  # noqa: E731
    for path, module in nnx.iter_modules(quantized):
        name = "/".join(map(str, path))
        if isinstance(module, QuantEmbed):
            weights[f"{name}/embedding"] = exact(module.weight).T
        elif isinstance(module, QuantLinear):
            weights[f"{name}/kernel"] = exact(module.weight)
        elif isinstance(module, QuantExperts):
            weights[f"{name}/gate_up_proj"], weights[f"{name}/down_proj"] = exact(module.gate_up), exact(module.down)
    return weights


@pytest.fixture(scope="module")
def unseen(nano, tmp_path_factory):
    """The beginnings of six texts, one a domain, and what the page makes of them in each arithmetic."""
    _, tokenizer, page = nano
    texts = [sample["text"] for sample in samples()]
    assert len(texts) == 6
    rows = [[tokenizer.eot_id, *tokenizer.encode(text)][:LENGTH] for text in texts]
    modes = {"modes": MODES, "rows": rows}
    return rows, run_in_browser(tmp_path_factory.mktemp("unseen"), page, READ, modes)


@browser
@pytest.mark.parametrize(("mode", "recipe"), [("float", None), ("int8", "int8"), ("fp4", "mxfp4")])
def test_logits_are_those_of_jax_on_unseen_text_of_all_domains(mode, recipe, nano, unseen):
    rows, found = unseen
    floats = dequantize_model(nano[0])
    assert compare(found[mode], floats if recipe is None else quantize_model(floats, recipe), rows) < 1e-3


@browser
def test_rounded_activations_are_those_of_the_loops_in_float64(nano, unseen):
    """float32 cannot be the measure: of two JAX programs of this model, one compiled whole and one operation by
    operation, the last bits differ, a value next to a half goes to another code, and logits differ by tenths."""
    rows, found = unseen
    floats = dequantize_model(nano[0])
    weights = exact_weights(floats, nano[0])
    for row, logits in zip(rows, logits_of(found["w8a8"]), strict=True):
        want = oracles.transformer(weights, row, floats.config, product=oracles.int8_product)
        np.testing.assert_allclose(logits, want, rtol=1e-9, atol=1e-9)


@browser
def test_rounded_activations_choose_nearly_what_jax_chooses(nano, unseen):
    rows, found = unseen
    quantized = quantize_model(dequantize_model(nano[0]), "int8-w8a8")
    logits, _ = jax.jit(lambda model, rows: model(rows))(quantized, jnp.asarray(rows, jnp.int32))
    theirs, ours = logits_of(found["w8a8"]), np.asarray(logits)
    assert np.abs(theirs - ours).mean() < 0.05
    assert (theirs.argmax(-1) == ours.argmax(-1)).mean() > 0.97


@browser
def test_logits_of_a_float_model_with_other_choices(byte_model, tmp_path):
    rows = np.random.default_rng(0).integers(257, size=(2, 32)).tolist()
    page = build_page(byte_model, load_tokenizer("byte"), name="bytes")
    modes = {"float": None, "int8": "int8", "fp4": "mxfp4"}
    found = run_in_browser(tmp_path, page, READ, {"modes": [*modes], "rows": rows})
    for mode, recipe in modes.items():
        model = byte_model if recipe is None else quantize_model(byte_model, recipe)
        assert compare(found[mode], model, rows) < 1e-3, mode
    texts = ["", "a\r\n\u00e9\U0001f600", "<|endoftext|>"]
    tokens = run_in_browser(tmp_path, page, "return given.map((text) => app.tokenizer.encode(text))", texts)
    assert tokens == [load_tokenizer("byte").encode(text) for text in texts]


@browser
def test_whole_numbers_multiply_as_in_jax(nano, tmp_path):
    """One product of codes by codes."""
    from minimoe.quant.matmul import int8_matmul

    model, _, page = nano
    x = np.random.default_rng(1).normal(size=model.config.d_model).astype(np.float32)
    body = 'return bytes(multiply(app.model.matrix("0.q", "w8a8"), Float64Array.from(given)))'
    found = np.frombuffer(base64.b64decode(run_in_browser(tmp_path, page, body, x.tolist())), np.float64)
    np.testing.assert_allclose(
        found, int8_matmul(jnp.asarray(x), model.layers[0].attention.q_proj.weight), rtol=2e-6, atol=1e-6
    )


HARD_TEXTS = (
    "", " ", "  ", "\n", "a\r\nb\r\n\r\n  c", "na\u00efve cafe\u0301 \u00d1and\u00fa", "x" * 300, "!?" * 90 + "\n\n  !",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 ok \U0001f1e9\U0001f1ea", "\u01c5\u02b0\u0345\u24d0",
    "I'LL we've 'S '\u017f don't it's 'Re", "\u00a0x\u0085y\ufeffz\u2028w\u3000v\u180e\u200b",
    "\t\tif x:\n\t    return  1  \n\n\n", "1234.5e-6 \u0663\u00b2\u216b\u00bd",
    "\u4f60\u597d\uff0c\u4e16\u754c \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "<|endoftext|> \x00\x07\x0b\x0c\x1b\x1c\x1f\x7f",
)  # fmt: skip
LETTERS = "aZ\u00e9\u0301\u017f \u00a0\t\r\n\x0b\x85\u2028'.,-_9\u00bd\u0663\U0001f600\u200d\ufeff\u4f60<|>stlvredm"


@browser
def test_tokens_are_those_of_python(nano, tmp_path):
    _, tokenizer, page = nano
    chance = random.Random(0)
    texts = [*HARD_TEXTS, *("".join(chance.choices(LETTERS, k=chance.randint(1, 40))) for _ in range(600))]
    texts += [document.text[:8000] for document in documents(split="val")[::12]]
    body = """return given.map((text) => { const tokens = app.tokenizer.encode(text);
      return [tokens, app.tokenizer.decode(tokens) === text]; })"""
    for text, (tokens, same) in zip(texts, run_in_browser(tmp_path, page, body, texts), strict=True):
        assert tokens == tokenizer.encode(text), text
        assert same, text


@browser
def test_halves_of_characters(nano, tmp_path):
    """Half a surrogate pair counts as U+FFFD; a token that ends inside a character is shown as its bytes."""
    _, tokenizer, page = nano
    halves = ["\ud83d", "a\udc00b", "\ud83d\ud83d\ude00", "\ude00\ud83d"]
    body = "return given.map((units) => app.tokenizer.encode(String.fromCharCode(...units)))"
    units = [np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16).tolist() for text in halves]
    whole = ["\ufffd", "a\ufffdb", "\ufffd\U0001f600", "\ufffd\ufffd"]
    assert run_in_browser(tmp_path, page, body, units) == [tokenizer.encode(text) for text in whole]
    emoji = tokenizer.encode("\U0001f600")
    shown = run_in_browser(tmp_path, page, "return given.map((token) => app.tokenizer.show(token))", emoji)
    assert len(shown) > 1
    assert all(re.fullmatch("‹[0-9a-f ]+›", text) for text in shown)


CONTROLS = """
  const type = async (text) => { $("text").value = text; $("text").oninput(); await settled(); };
  const seen = {}; await settled();
  await type("In the beginning God created");
  seen.chips = document.querySelectorAll(".token").length;
  seen.cells = document.querySelectorAll("#tokens .token")[1].querySelectorAll("i").length;
  $("temperature").value = 0; $("count").value = 12; await write(); await settled();
  seen.written = app.tokens.slice();
  seen.text = $("text").value;
  const busiest = largestOf(app.now.loads()[1]);
  app.buttons[1][busiest].click(); await settled();
  seen.title = $("expert-title").textContent;
  seen.taken = document.querySelectorAll(".token.taken").length;
  const route = (reading) => reading.steps.map(({ routes }) => routes[1]);
  const before = route(app.now);
  $("bias").value = 0.3; $("bias").oninput(); await settled();
  seen.more = app.now.loads()[1][busiest] > app.plain.loads()[1][busiest];
  seen.affinities = route(app.now).every(({ affinities }, i) => affinities.every((a, e) => a === before[i].affinities[e]));
  seen.effect = $("bias-effect").textContent;
  $("off").click(); await settled();
  seen.left = app.now.loads()[1][busiest];
  seen.changed = $("changed").textContent;
  seen.moved = document.querySelectorAll(".token.moved").length;
  $("reset").click(); await settled();
  seen.unchanged = $("changed").textContent;
  const fp4 = document.querySelector('input[value="fp4"]'); fp4.click(); await settled();
  seen.fp4 = $("changed").textContent;
  document.querySelector('input[value="int8"]').click(); await settled();
  seen.int8 = $("changed").textContent;
  document.querySelector('input[value="w8a8"]').click(); await settled();
  seen.w8a8 = $("changed").textContent; seen.note = $("mode-note").textContent;
  document.querySelector('input[value="float"]').click(); await settled();
  seen.pairs = document.querySelectorAll("#pairs .twin").length;
  seen.distance = $("distance").textContent;
  seen.shares = [...document.querySelectorAll("#pairs .twin small")].map((share) => +share.textContent);
  $("next").firstChild.click(); await settled();
  seen.appended = app.tokens.length - seen.written.length;
  const key = new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true });
  app.buttons[0][2].focus(); app.buttons[0][2].dispatchEvent(key);
  seen.focus = document.activeElement === app.buttons[1][2];
  await type("word and ".repeat(5000));
  seen.notice = $("notice").textContent; seen.long = app.tokens.length;
  $("temperature").value = 1; $("count").value = 3; await write(); await settled();
  seen.slid = app.tokens.length;
  await type(""); seen.empty = app.tokens.length;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  return seen;"""


@browser
def test_the_controls(nano, tmp_path):
    model, tokenizer, page = nano
    seen = run_in_browser(tmp_path, page, CONTROLS, milliseconds=60_000)
    prompt = [tokenizer.eot_id, *tokenizer.encode("In the beginning God created")]
    greedy = generate(dequantize_model(model), jnp.asarray([prompt], jnp.int32), 12, temperature=0.0)[0].tolist()
    assert (seen["chips"], seen["cells"]) == (len(prompt), 4 * 2)
    assert seen["written"] == greedy
    assert seen["text"] == tokenizer.decode(greedy)
    assert re.fullmatch(r"Expert \d of layer 2", seen["title"])
    assert 0 < seen["taken"] <= len(greedy)
    assert seen["more"], "a bias must move traffic"
    assert seen["affinities"], "and no affinity of its layer"
    assert "no affinity moved by more than 0.0000" in seen["effect"]
    assert seen["left"] == 0
    assert seen["moved"] > 0
    assert re.search(r"[1-9]\d* of \d+ choices of experts differ", seen["changed"])
    assert seen["unchanged"].startswith("Nothing is changed")
    assert re.search(r"[1-9]\d* of \d+ choices of experts differ", seen["fp4"])
    assert re.search(r" 0 of \d+ choices of experts differ", seen["int8"]), "nano was stored in int8"
    plain, rounded = re.findall(r"\d\.\d+", seen["w8a8"].partition("Bits per token")[2])
    assert plain != rounded
    assert "not quite those of JAX" in seen["note"]
    assert seen["pairs"] == 4 * 8
    assert re.search(r"layer 4 \d", seen["distance"])
    assert np.abs(np.reshape(seen["shares"], (4, 8, 2)).sum(axis=1) - 100).max() <= 4, "rounded shares of a layer"
    assert (seen["appended"], seen["focus"], seen["empty"], seen["overflow"]) == (1, True, 1, 0)
    cut = len(tokenizer.encode("word and " * 5000)) - 255
    assert cut > 9_000
    assert f"Cut: the first {cut:,} tokens; shown: the last 255." in seen["notice"]
    assert (seen["long"], seen["slid"]) == (256, 1 + 128 + 3)


@browser
def test_the_page_is_measured(byte_model, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(build_page(byte_model, load_tokenizer("byte"), name="bytes"), encoding="utf-8")
    seen = measure_page(path)
    assert seen["first_paint_ms"] > 0
    assert 0 < seen["ready_ms"] <= seen["drawn_ms"]
    assert {mode: speed > 0 for mode, speed in seen["tokens_per_second"].items()} == dict.fromkeys(MODES, True)
    assert seen["bytes"] == path.stat().st_size
    path.write_text("<body></body>", encoding="utf-8")
    with pytest.raises(UserError, match="did not answer within 2 seconds"):
        measure_page(path, seconds=2.0)


def test_without_a_browser_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="no browser found; install one of chromium"):
        measure_page(tmp_path / "page.html")


def test_the_page_is_whole_and_small(nano):
    page = nano[2]
    assert len(page.encode()) < 5_000_000
    assert MARK in page[:400]
    assert not re.search(r"https?://|\bimport\s*\(|fetch\(|XMLHttpRequest|\{\{", page)
    assert all(
        not script.strip().startswith("import") for script in re.findall("<script>(.*?)</script>", page, re.DOTALL)
    )


def test_names_are_escaped(byte_model):
    page = build_page(byte_model, load_tokenizer("byte"), name="</script><b>")
    assert "</script><b>" not in page
    assert "&lt;/script&gt;&lt;b&gt;" in page


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (ModelConfig.preset("v4-nano"), "layers that differ"),
        (ModelConfig.preset("nano").dense_equivalent(), "no experts"),
        (ModelConfig.preset("nano").replace_attention(qk_norm=True), "norms on queries"),
        (ModelConfig.preset("nano").replace_moe(dispatch="capacity"), "a capacity"),
    ],
)
def test_what_the_page_cannot_compute_is_refused(config, what):
    from minimoe.microscope.pack import check_supported

    with pytest.raises(UserError, match=f"cannot show this model.*{what}.*take a model of the shape of nano"):
        check_supported(config)


def test_a_tokenizer_that_the_page_would_cut_otherwise_is_refused():
    from minimoe.data.tokenizer import _from_json
    from minimoe.microscope.pack import pack_tokenizer

    values = json.loads(load_tokenizer().to_json())
    split, end = values["pre_tokenizer"]["pretokenizers"]
    word = {**values["added_tokens"][0], "id": 2048, "content": "xyz", "special": False}
    assert pack_tokenizer(_from_json(json.dumps(values)))["cut"]
    for change in (
        {"pre_tokenizer": end | {"use_regex": True}},  # by GPT-2's rule, which is in no Split
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split | {"behavior": "MergedWithNext"}, end]}},
        {"model": values["model"] | {"ignore_merges": True}},
        {"added_tokens": [*values["added_tokens"], word]},
    ):
        with pytest.raises(UserError, match="cuts text by a rule of its own"):
            pack_tokenizer(_from_json(json.dumps(values | change)))


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert app.run(["microscope", "nano", "--out", "page.html"]) == 0
    assert "page.html: 4." in capsys.readouterr().out
    first = (tmp_path / "page.html").read_bytes()
    assert app.run(["microscope", "--out", "page.html"]) == 0
    assert (tmp_path / "page.html").read_bytes() == first
    capsys.readouterr()
    for name, content in (("notes.html", "mine"), ("folder", None)):
        path = tmp_path / name
        path.mkdir() if content is None else path.write_text(content)
        assert app.run(["microscope", "--out", name]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert name in error
    assert (tmp_path / "notes.html").read_text() == "mine"
