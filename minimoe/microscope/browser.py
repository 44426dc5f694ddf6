"""The page in a browser of this machine: how fast it shows something, and how many tokens a second it writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from minimoe.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
TOKENS, ROUNDS = 100, 3
PROGRAM = """<script>(async () => {
  const settled = async () => { do await pause(); while (app.busy || app.comparing); };
  const whole = performance.now(); // all of the page is read: model decoded, tokenizer ready
  await settled();
  const drawn = performance.now(), speeds = {}, count = Math.min(TOKENS, app.config.context_length);
  for (const mode of MODES) {
    app.model.use(mode);
    speeds[mode] = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const cache = app.model.newCache(), began = performance.now();
      let token = app.tokenizer.eot;
      for (let i = 0; i < count; i++) token = largestOf(app.model.logits(app.model.step(token, cache, null).hidden));
      speeds[mode] = Math.max(speeds[mode], count / (performance.now() - began) * 1000);
    }
  }
  const paint = () => performance.getEntriesByName("first-contentful-paint")[0];
  while (!paint()) await pause(); // a page may be ready before it is on the screen
  const result = { first_paint_ms: paint().startTime, ready_ms: whole, drawn_ms: drawn, tokens_per_second: speeds };
  await fetch("/result", { method: "POST", body: JSON.stringify(result) });
})();</script></body>"""


def find_browser() -> str | None:
    """The path of a Chromium or Chrome, None if there is none.

    Example:
      >>> find_browser() is None or Path(find_browser()).exists()
      True
    """
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def measure_page(page: str | os.PathLike[str], *, seconds: float = 60.0) -> dict[str, Any]:
    """Opens a page of `minimoe.microscope` in a browser without a window, from a server on this machine.

    Args:
      page: what `write_page` wrote. seconds: after which the browser is stopped.

    Returns:
      ``first_paint_ms`` (the first text on the screen), ``ready_ms`` (weights decoded), ``drawn_ms`` (a text of 600
      characters read and drawn), all after navigation began; ``tokens_per_second``: for each arithmetic the best of three
      times 100 tokens (or a context) after an empty text, nothing drawn; ``bytes`` of the page; ``browser``, its version.

    Raises:
      UserError: if there is no browser, or it does not answer in time.
    """
    program = find_browser()
    if program is None:
        raise UserError(f"no browser found; install one of {', '.join(BROWSERS)}")
    raw = Path(page).read_bytes()
    script = PROGRAM.replace("TOKENS", str(TOKENS)).replace("ROUNDS", str(ROUNDS))
    # The copy that is measured may send its result home; the page itself may send nothing.
    content = raw.decode("utf-8").replace("default-src 'none'", "default-src 'none'; connect-src 'self'", 1)
    answers: list[dict[str, Any]] = []
    answered = threading.Event()
    served = content.replace("</body>", script).encode()
    with HTTPServer(("127.0.0.1", 0), partial(_Handler, served, answers, answered)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            _browse(program, f"http://127.0.0.1:{server.server_port}/", answered, seconds)
        finally:
            server.shutdown()
    if not answers:
        raise UserError(f"{program} did not answer within {seconds:g} seconds; give it more with seconds=")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return answers[0] | {"bytes": len(raw), "browser": " ".join(version.split()[:2])}


def _browse(program: str, address: str, answered: threading.Event, seconds: float) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")  # which refuses to start for root
        quiet = subprocess.DEVNULL
        with subprocess.Popen([program, *options, address], stdin=quiet, stdout=quiet, stderr=quiet) as browser:
            answered.wait(seconds)
            browser.terminate()
            try:
                browser.wait(10)
            except subprocess.TimeoutExpired:
                browser.kill()


class _Handler(BaseHTTPRequestHandler):
    """Serves the page, and keeps what it answers."""

    def __init__(self, page: bytes, answers: list[dict[str, Any]], answered: threading.Event, *rest: Any):
        self.page, self.answers, self.answered = page, answers, answered
        super().__init__(*rest)

    def do_GET(self) -> None:
        """The page."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.page)

    def do_POST(self) -> None:
        """What was measured."""
        self.answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.answered.set()

    def log_message(self, format: str, *rest: Any) -> None:
        """Nothing: the terminal is not for this."""
