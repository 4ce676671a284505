import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cli.history import Panel, Series
from cli.pictures import check_format, html, picture, svg
from tokenizer.errors import UserError

EVIL = "</text><script>alert(1)</script>&\"'\x1b\x00 $x$"
PANELS = [
    Panel("loss", (Series("one", ((1, 5.0), (2, 3.0), (9, 2.0))), Series(EVIL, ((1, 4.0),)))),
    Panel("perplexity", (Series("one", ((1, 900.0), (9, 3.0))), Series(EVIL, ())), is_log=True),
]
SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_has_each_curve_within_its_frame():
    root = ET.fromstring(svg(PANELS))
    width, height = float(root.get("width")), float(root.get("height"))
    curves = [p for p in root.iter(f"{SVG}path") if p.get("class") == "curve" and "L" in p.get("d")]
    assert len(curves) == 2
    for curve in curves:
        xs, ys = zip(*re.findall(r"([\d.]+) ([\d.]+)", curve.get("d")), strict=True)
        assert 0 < min(map(float, xs)) < max(map(float, xs)) < width
        assert 0 < min(map(float, ys)) < max(map(float, ys)) < height


def test_values_are_told_under_the_pointer():
    titles = [title.text for title in ET.fromstring(svg(PANELS)).iter(f"{SVG}title")]
    assert "one, step 9: 2" in titles
    assert len(titles) == 6


def test_names_are_text_and_nothing_else():
    root = ET.fromstring(svg(PANELS))
    assert not list(root.iter(f"{SVG}script"))
    assert any("</text><script>" in (t.text or "") for t in root.iter(f"{SVG}text"))


def test_nothing_is_fetched_from_elsewhere():
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(html(PANELS))
    assert {tag for tag, _ in tags} >= {"html", "svg", "path"}
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "use"}
    assert not any({"href", "src", "onload", "xlink:href"} & set(a) for _, a in tags)
    assert "url(" not in html(PANELS)
    assert "@import" not in html(PANELS)


def test_it_is_light_or_dark_as_its_reader_likes():
    assert "prefers-color-scheme: dark" in svg(PANELS)


def test_a_long_curve_makes_no_long_file():
    n = 100_000
    points = tuple((float(x), float(x * x % 97)) for x in range(n))
    assert len(svg([Panel("loss", (Series("one", points),))])) < 60_000


def test_an_unknown_ending_is_refused():
    with pytest.raises(UserError, match=r"curves\.pdf: the name of a picture ends in \.svg"):
        check_format(Path("curves.pdf"))


@pytest.mark.filterwarnings("default")
def test_png_is_drawn_by_matplotlib():
    pytest.importorskip("matplotlib")
    assert picture(PANELS, Path("curves.png")).startswith(b"\x89PNG")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["curves.svg", "curves.png"])
def test_the_legend_shows_every_name(name):
    pytest.importorskip("matplotlib")

    def drawn(*names):
        return picture([Panel("loss", tuple(Series(n, ((1, 2.0),)) for n in names))], Path(name))

    assert drawn("one", "_two") != drawn("one", "_other")
    assert drawn("_one", "_two") != drawn("_one", "_other")
    assert drawn("_one", "_two") == drawn("_one", "_two")


def test_without_matplotlib_png_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"curves\.png: .*pip install 'tfm\[plot\]'"):
        picture(PANELS, Path("curves.png"))
