"""What holds for the repository as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tools").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_both_readmes_show_the_same_commands() -> None:
    def code(page: str) -> list[str]:
        blocks = re.findall(r"^```.*?^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
        return [re.sub(r"\s*#.*", "", line) for block in blocks for line in block.splitlines()]

    english, russian = code("README.md"), code("README.ru.md")
    assert "make demo" in english
    assert "make test" in english
    assert english == russian


def test_requirements_are_pinned_with_hashes_and_name_no_address() -> None:
    for file in (ROOT / "requirements").rglob("*.txt"):
        text = file.read_text("utf-8")
        assert "://" not in text
        pins = re.findall(r"^[a-z0-9][\w.-]*==\S+", text, re.MULTILINE)
        assert pins
        assert len(pins) <= text.count("--hash=sha256:")
        assert "torch" not in {pin.split("==")[0] for pin in pins}


def test_the_settings_page_is_made_from_the_settings() -> None:
    before = (ROOT / "docs" / "settings.md").read_text("utf-8")
    code = (
        "import runpy; page = runpy.run_path('tools/settings_page.py'); "
        "import sys; sys.stdout.reconfigure(encoding='utf-8'); print(page['page'](), end='')"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    assert made == before, "run: make settings"


def test_models_of_the_tests_stay_small() -> None:
    files = [file for file in (ROOT / "tests" / "models").rglob("*") if file.is_file()]
    assert files
    assert sum(file.stat().st_size for file in files) < 25_000_000


def test_every_file_is_short_enough_to_be_one_idea() -> None:
    for file in (ROOT / "src").rglob("*.py"):
        assert len(file.read_text("utf-8").splitlines()) <= 450, file.name
