"""Renders every overlay again."""

from tests.cluster.rendered import CLOUDS, PARTS, file, render

for each in ((cloud, part) for cloud in CLOUDS for part in PARTS):
    file(*each).write_text(render(*each))
