"""Draws a trace of `flash_crowd`: how full every node's links were, and when pieces arrived.

pip install 'passel[notebooks]'
python bench/plot_trace.py trace.jsonl [trace.png]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("image", type=Path, nargs="?", help="default: beside the trace")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.trace.read_text().splitlines()]
    image = arguments.image or arguments.trace.with_suffix(".png")
    draw(lines, image)
    print(image)


def draw(lines: list[dict[str, Any]], image: Path) -> None:
    """Three panels: uplinks, downlinks, pieces."""
    head, rest = lines[0], lines[1:]
    nodes = sorted(head["zone_of"], key=lambda name: (head["zone_of"][name], int(name[1:])))
    links = [line for line in rest if line["event"] == "links"]
    full = head["mbit"] * 1e6 / 8
    figure, panels = plt.subplots(
        3, 1, figsize=(12, 3 + 0.5 * len(nodes)), sharex=True, height_ratios=[1, 1, 1.2]
    )
    edges = np.array([line["t"] for line in links])
    for axes, side, word in zip(panels[:2], (0, 1), ("uplink", "downlink"), strict=True):
        counts = np.array([[line["bytes"][name][side] for name in nodes] for line in links])
        share = np.diff(counts, axis=0) / np.maximum(np.diff(edges)[:, None], 1e-9) / full
        mesh = axes.pcolormesh(edges, np.arange(len(nodes) + 1), share.T, vmin=0, vmax=1)
        axes.set_yticks(np.arange(len(nodes)) + 0.5, nodes)
        axes.set_title(f"{word}: share of {head['mbit']:g} Mbit/s (mean {share.mean():.2f})")
        figure.colorbar(mesh, ax=axes)
    pieces(panels[2], [line for line in rest if line["event"] == "piece"])
    panels[2].set_xlabel("seconds")
    for axes in panels:
        axes.axvline(head["size_bytes"] / full, color="red", linestyle=":", label="S/u")
    figure.tight_layout()
    figure.savefig(image, dpi=90)


def pieces(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """When each piece was first and last got, and the times between."""
    times: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        times[line["piece"]].append(line["t"])
    for piece, each in times.items():
        axes.plot(each, [piece] * len(each), ".", markersize=2, color="grey")
        axes.plot(min(each), piece, "g.", markersize=4)
        axes.plot(max(each), piece, "k.", markersize=4)
    axes.set_ylabel("piece")
    axes.set_title("a piece at its first node (green), at the last (black)")


if __name__ == "__main__":
    main()
