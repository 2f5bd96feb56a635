"""A picture of a report, as a browser shows it, for the documentation.

`make screenshot` takes the demo's report and writes docs/images/report.png. It needs Chromium or Chrome,
found by name or given as `BROWSER=/path/to/it`. The browser reads the file from the disk, with a profile that
is thrown away.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What keeps a browser from asking anybody for anything. Pages are our own: no sandbox, which root has not.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
DARK = "--blink-settings=preferredColorScheme=0"
SECONDS = 120
COLOURS = 256  # of the palette


def find_browser(wish: str) -> str:
    """The browser's path.

    Raises:
        SystemExit: there is none.
    """
    found = next((path for name in (wish, *BROWSERS) if name and (path := shutil.which(name))), None)
    if found is None:
        raise SystemExit("no browser was found: install Chromium, or name it with --browser")
    return found


def take(browser: str, page: Path, size: tuple[int, int], dark: bool, out: Path) -> None:
    """Write the top of a page, `size` pixels, as a PNG with a palette."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        command += [f"--window-size={size[0]},{size[1]}", *([DARK] if dark else []), page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if not shot.exists():
            raise SystemExit(f"{browser} took no picture:\n{done.stderr[-2000:]}")
        with Image.open(shot) as image:
            few = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    out.parent.mkdir(parents=True, exist_ok=True)
    few.save(out, optimize=True)


def main() -> None:
    """Take the picture and say how large it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, help="report.html of an evaluation")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/report.png", help="PNG file")
    parser.add_argument("--browser", default="", help="name or path; by default the first that is found")
    parser.add_argument("--width", type=int, default=1280, help="pixels")
    parser.add_argument("--height", type=int, default=1330, help="pixels")
    parser.add_argument("--dark", action="store_true", help="as a reader with a dark theme sees it")
    options = parser.parse_args()
    if not options.page.is_file():
        raise SystemExit(f"{options.page} does not exist: `make demo` writes runs/digits/eval/report.html")
    size = options.width, options.height
    take(find_browser(options.browser), options.page, size, options.dark, options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
