"""griffe extension: what our docstrings say in another way than mkdocstrings reads it."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Show ``Example:`` sections as code, and the roles of reStructuredText as code too."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute before it is parsed."""
        if obj.docstring:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r":(?:class|func|meth):`", "`", text)
