"""A contact sheet: queries and what was found, as one HTML file that needs no other."""

from __future__ import annotations

import html
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from reverse_image_search.gallery import data_uri
from reverse_image_search.terminal.output import Match, printable

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Reverse image search</title>
<style>
  :root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
  section { display: flex; flex-wrap: wrap; gap: 12px; margin-bottom: 32px; }
  h2 { width: 100%; font-size: 16px; margin: 0; overflow-wrap: anywhere; }
  figure { width: 160px; margin: 0; }
  .query { border-right: 3px solid #1f77b4; padding-right: 12px; }
  img { width: 160px; height: 160px; object-fit: contain; background: #8882; }
  img.tiny { image-rendering: pixelated; }
  figcaption { overflow-wrap: anywhere; }
  figcaption b { font-variant-numeric: tabular-nums; }
</style>
"""
_TINY = 64  # pixels; smaller images are shown with sharp pixels


def write_contact_sheet(sections: Iterable[tuple[str, bytes, list[Match]]]) -> Path:
    """Write name, thumbnail, and matches of each query to a new file in the temporary folder."""
    number, name = tempfile.mkstemp(prefix="search-", suffix=".html")
    with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(_HEAD)
        for query, thumbnail, found in sections:
            title = html.escape(printable(query))
            file.write(f"<section><h2>{title}</h2>\n")
            file.write(f'<figure class="query">{_image(thumbnail, "query")}</figure>\n')
            file.writelines(_figure(match) for match in found)
            file.write("</section>\n" if found else "<p>nothing found</p></section>\n")
    return Path(name)


def open_on_desktop(path: Path) -> bool:
    """Show a file with the desktop's program for it; False where there is no desktop."""
    is_mac = sys.platform == "darwin"
    opener = shutil.which("open" if is_mac else "xdg-open")
    has_display = is_mac or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (opener and has_display):
        return False
    # Not waited for: where the browser was not running, this is the browser.
    null = subprocess.DEVNULL
    subprocess.Popen([opener, path], stdin=null, stdout=null, stderr=null, start_new_session=True)
    return True


def _figure(match: Match) -> str:
    names = "<br>".join(_link(path) for path in match.paths) or html.escape(match.source)
    label = f" {html.escape(match.label)}" if match.label else ""
    image = _image(match.thumbnail, match.source, max(match.width, match.height) <= _TINY)
    caption = f"<b>{match.score:.3f}</b>{label}<br>{names}"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"


def _link(path: str) -> str:
    return f'<a href="file://{quote(os.fsencode(path))}">{html.escape(printable(path))}</a>'


def _image(data: bytes, text: str, is_tiny: bool = False) -> str:
    tiny = ' class="tiny"' if is_tiny else ""
    return f'<img{tiny} alt="{html.escape(printable(text))}" src="{data_uri(data)}">'
