"""The microscope's page: the model and the tokenizer in a browser equal those in Python, and its controls do what they say.

Needs Chromium or Chrome: where there is none, only what Python does is tested.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimoe.hub import load_pretrained
from minimoe.microscope import build_page
from minimoe.microscope.page import samples
from minimoe.quant import dequantize_model, quantize_model

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
LENGTH = 48


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


READ = """const model = mode => { app.model.use(mode); return app.model; }, out = {};
  for (const mode of given.modes) out[mode] = given.rows.map((row) => {
    const cache = model(mode).newCache(), steps = row.map((token) => model(mode).step(token, cache, null));
    return { routes: steps.map(({ routes }) => routes.map(({ experts }) => experts)),
             weights: steps.map(({ routes }) => routes.map(({ weights }) => Array.from(weights))),
             logits: steps.map(({ hidden }) => bytes(model(mode).logits(hidden))) }; });
  return out;"""


def compare(found, model, rows):
    """The largest difference of a logit; experts and weights must be the same, up to the order of equals."""
    logits, routing = jax.jit(lambda model, rows: model(rows))(model, jnp.asarray(rows, jnp.int32))
    theirs = [[np.frombuffer(base64.b64decode(step), np.float32) for step in row["logits"]] for row in found]
    layers = (len(rows), len(rows[0]), -1)
    for layer, record in enumerate(routing):
        experts = np.asarray([[step[layer] for step in row["routes"]] for row in found])
        np.testing.assert_array_equal(experts, np.asarray(record.experts).reshape(layers))
        weights = np.asarray([[step[layer] for step in row["weights"]] for row in found])
        np.testing.assert_allclose(weights, np.asarray(record.weights).reshape(layers), atol=1e-4)
    return float(np.abs(np.asarray(theirs) - np.asarray(logits)).max())


@browser
def test_logits_are_those_of_jax_on_unseen_text_of_all_domains(nano, tmp_path):
    model, tokenizer, page = nano
    texts = [sample["text"] for sample in samples()]
    assert len(texts) == 6
    rows = [[tokenizer.eot_id, *tokenizer.encode(text)][:LENGTH] for text in texts]
    found = run_in_browser(tmp_path, page, READ, {"modes": ["float", "fp4"], "rows": rows})
    floats = dequantize_model(model)
    assert compare(found["float"], floats, rows) < 1e-3
    assert compare(found["fp4"], quantize_model(floats, "mxfp4"), rows) < 1e-3
