"""Motion50: labelled manipulation clips whose label lies in the motion, rendered from PyPI packages."""
