"""Replays of FPS, MCGDiff and TDS for `tests.conformance`."""

REPLAYS = {}
