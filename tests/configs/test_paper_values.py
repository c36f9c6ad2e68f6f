"""Configs that stand for a paper's run have its values, and whatever differs is justified on the method's page."""

from __future__ import annotations

import re

import pytest

from benchmarks.fidelity import CONFIGS, Value, intensity_scales, main, papers, reasons, recipe_of
from models.methods import METHODS

OUR_OWN = {"slidr_kitti", "slidr_kitti_cpu", "slidr_waymo", "pixel_contrast_7scenes", "pixel_to_point_7scenes"}
"""Runs on sets that no paper has figures for."""

every_recipe = pytest.mark.parametrize("name", papers())


def test_every_config_is_a_papers_or_says_that_it_is_not() -> None:
    others = {path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("_street")}
    assert set(papers()) | OUR_OWN == others
    assert not set(papers()) & OUR_OWN


@every_recipe
def test_what_differs_from_the_paper_is_justified(name: str) -> None:
    """In the section "Deviations" of the method's page, by the setting's name."""
    recipe = recipe_of(name)
    silent = [v for v in recipe.values if v.deviates and not reasons(recipe.method).get(v.name)]
    assert not silent, f"docs/methods/{recipe.method}.md does not say why"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_page_justifies_what_does_not_differ(method: str) -> None:
    recipes = map(recipe_of, papers())
    deviating = {v.name for recipe in recipes if recipe.method == method for v in recipe.values if v.deviates}
    assert set(reasons(method)) == deviating


@every_recipe
def test_the_header_has_the_published_figures(name: str) -> None:
    recipe = recipe_of(name)
    numbers = {float(n) for n in re.findall(r"\d+\.\d+|\d+", recipe.header)}
    assert not [f"{name} {figure}" for name, figure in recipe.figures.items() if figure not in numbers]
    assert re.search(rf"{recipe.table}\b", recipe.header), f"expected {recipe.table} beside the figures"


@pytest.mark.parametrize(
    ("paper", "here", "deviates"),
    [
        (0.5, 0.5004, False),
        (0.5, 0.51, True),
        (1, True, True),
        ([0.3, 1], (0.3, 1.0), False),
        ([0.3, 1], (0.3,), True),
        (None, None, False),
        ("y alone", True, True),
    ],
)
def test_what_counts_as_a_deviation(paper: object, here: object, deviates: bool) -> None:
    assert Value("setting", paper, here).deviates == deviates


@pytest.mark.slow
def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "ppkt_nuscenes"]) == 0
    printed = capsys.readouterr().out
    assert "Published: linear probe 36.4, fine-tuned on 1 % 37.8 (table 2)" in printed
    assert "| `rate` | 0.5 | 0.5 |  |" in printed
    assert re.search(r"\| `data.voxel.features` \| occupancy \| intensity \| .*occupancy", printed)
    with pytest.raises(SystemExit):
        main(["recipes", "slidr_street"])


def test_metric_edges_and_scales_of_intensity_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The values are those that the official tools gave (nuScenes: left out, SemanticKITTI: zero, SLidR: one)."""
    assert main(["metrics"]) == 0
    printed = capsys.readouterr().out
    assert "| a class neither true nor predicted | 45.151 | 42.329 | 48.579 |" in printed
    assert "| a class predicted, never true | 42.846 | 42.846 | 42.846 |" in printed
    assert "| converted | 1.0000 |" in intensity_scales("res16unet_tiny")
