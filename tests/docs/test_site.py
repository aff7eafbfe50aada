"""The documentation site in a browser: headless Chromium loads every page at the widths of a desktop and of a phone."""

from pathlib import Path

import pytest
from chromium import WIDTHS, resize

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SEARCH = "separable attention"

# What stands out of the window, and what is cut off. Only boxes that scroll may hold more than they show.
TOO_WIDE = """
const width = document.documentElement.clientWidth, found = [];
const scrolls = box => ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
function inScrollingBox(element) {
  for (let box = element.parentElement; box; box = box.parentElement)
    if (scrolls(box) && box.getBoundingClientRect().right <= width + 1) return true;
  return false;
}
// The sidebars of a narrow window are drawers beside it, until they are opened.
const onScreen = element => element.closest(".md-sidebar").getBoundingClientRect().left >= 0;
if (document.documentElement.scrollWidth > width) found.push("the page");
const parts = "article *, .md-footer *, .md-header__title, .md-sidebar .md-ellipsis";
for (const element of document.querySelectorAll(parts)) {
  const box = element.getBoundingClientRect();
  if (!box.width || !box.height || !element.checkVisibility({visibilityProperty: true})) continue;
  if (element.closest(".md-sidebar") && !onScreen(element)) continue;
  const outside = (box.right > width + 1 || box.left < -1) && !inScrollingBox(element);
  const cut = getComputedStyle(element).overflowX === "hidden" && element.scrollWidth > element.clientWidth + 1;
  if (outside || cut) found.push(`${element.tagName} ${element.textContent.trim().slice(0, 60)}`);
}
return found;
"""

# Names of models that begin on one line and end on another.
BROKEN_NAMES = r"""
const found = [], walker = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
let names = 0;
while (walker.nextNode()) {
  for (const match of walker.currentNode.data.matchAll(/mobilevitv[123][_-]\w[\w.]*/g)) {
    const range = document.createRange();
    range.setStart(walker.currentNode, match.index);
    range.setEnd(walker.currentNode, match.index + match[0].length);
    const lines = new Set(Array.from(range.getClientRects(), box => Math.round(box.top)));
    names += 1;
    if (lines.size > 1) found.push(match[0]);
  }
}
return [names, found];
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits_and_no_name_breaks(site, browser, width):
    folder, address = site
    pages = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    resize(browser, width)
    faults, names = [], 0
    for page in pages:
        browser.get(f"{address}/{page}")
        assert browser.execute_script("return document.documentElement.clientWidth") <= width
        on_page, broken = browser.execute_script(BROKEN_NAMES)
        names += on_page
        faults += [f"{page}: {fault}" for fault in (*browser.execute_script(TOO_WIDE), *broken)]
    assert not faults, "\n".join(faults)
    assert names > 100


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ("<p style='width: 2000px'>wide</p>", TOO_WIDE),
        ("<p style='width: 90px; overflow: hidden; white-space: nowrap'>more than there is room for</p>", TOO_WIDE),
        ("<p style='width: 60px; word-break: break-all'>mobilevitv1_xxs</p>", BROKEN_NAMES),
    ],
)
def test_faults_are_found(site, browser, width, html, fault):
    resize(browser, width)
    browser.get(f"{site[1]}/index.html")
    browser.execute_script("document.querySelector('article').innerHTML = arguments[0]", html)
    found = browser.execute_script(fault)
    assert found[-1] if fault is BROKEN_NAMES else found


@pytest.mark.parametrize("width", WIDTHS)
def test_search_finds_pages(site, browser, width):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    resize(browser, width)
    browser.get(f"{site[1]}/index.html")
    if width < 600:
        browser.find_element(By.CSS_SELECTOR, "label.md-header__button[for=__search]").click()
    field = browser.find_element(By.CSS_SELECTOR, ".md-search__input")
    WebDriverWait(browser, 10).until(lambda _: field.is_displayed() and field.is_enabled())
    field.click()
    field.send_keys(SEARCH)
    # In one call: the results are drawn again while the words are typed.
    links = "return [...document.querySelectorAll('.md-search-result__item a')].map((link) => link.href)"
    WebDriverWait(browser, 20).until(lambda _: any("api_models.html" in link for link in browser.execute_script(links)))
