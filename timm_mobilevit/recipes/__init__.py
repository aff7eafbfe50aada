"""The published training recipes of the classifiers, one file for timm's ``train.py --config`` each.

A file is called like the weights that the recipe is published to give (``mobilevitv3_s.micron_in1k``). It says in
comments where its values come from, how to launch it, and where timm cannot do as the reference does.
"""

from pathlib import Path

from .._nearest import suggestion

_FOLDER = Path(__file__).parent


def list_recipes() -> list[Path]:
    """List the files of all recipes, by name.

    Example:
        >>> [path.stem for path in list_recipes() if "v1" in path.stem]
        ['mobilevitv1_s.cvnets_in1k', 'mobilevitv1_xs.cvnets_in1k', 'mobilevitv1_xxs.cvnets_in1k']
    """
    return sorted(_FOLDER.glob("*.yaml"), key=lambda path: path.stem)


def find_recipe(name: str) -> Path:
    """Find the file of a recipe.

    Args:
        name: Name of the recipe, or of an architecture that has only one.

    Raises:
        ValueError: If there is no such recipe, or the architecture has several.

    Example:
        >>> find_recipe("mobilevitv3_s").name
        'mobilevitv3_s.micron_in1k.yaml'
        >>> find_recipe("mobilevitv2_1_0")
        Traceback (most recent call last):
        ...
        ValueError: mobilevitv2_1_0 has several recipes: mobilevitv2_1_0.cvnets_in1k, mobilevitv2_1_0.cvnets_in1k_384
    """
    paths = {path.stem: path for path in list_recipes()}
    if name in paths:
        return paths[name]
    found = [path for stem, path in paths.items() if stem.partition(".")[0] == name]
    if len(found) > 1:
        raise ValueError(f"{name} has several recipes: {', '.join(path.stem for path in found)}")
    if not found:
        raise ValueError(f"no recipe {name!r}; {suggestion(name, paths, '`timm-mobilevit recipe list` shows all')}")
    return found[0]
